"""What `--json` prints: a report or a plan for programs, null for what is not known. No torch, no Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from raylm.config.sweep import Sweep
from raylm.planning import plan
from raylm.planning.plan import TrialPlan
from raylm.planning.throughput import Placement
from raylm.report import formats
from raylm.report.reference import ReferenceTable
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Results

STORED_STATUSES = (DONE, STOPPED, DIVERGED, FAILED, INTERRUPTED, PENDING)
SUMMED_FIELDS = ("tokens", "steps", "flops", "checkpoint_bytes", "estimated_seconds", "device_seconds")
"""Of the numbers of a trial's plan those that add up."""


def format_report_json(results: Results, reference: ReferenceTable | None = None) -> str:
    """The rows by the columns of results.csv, how many stand how, and the best run of each dataset."""
    return _dump_json(
        {
            "results": results.storage.uri,
            "rows": formats.build_records(results, reference),
            "counts": {status: results.count(status) for status in STORED_STATUSES},
            "best": {dataset: row.config.run_name for dataset, row in results.best_by_dataset.items()},
        }
    )


def format_plan_json(
    sweep: Sweep,
    results: Results,
    plans: Sequence[TrialPlan | None],
    placement: Placement | None,
    price_per_hour: float | None,
) -> str:
    """What each trial takes, and all together that are still to be done.

    Args:
        sweep: what is planned.
        found: how it stands.
        plans: of its rows.
        slot: what a trial runs on; None where that is not known.
        price_per_hour: of a GPU, or of a machine without.
    """
    rows: list[dict[str, Any]] = [
        {"run": row.config.run_name, "status": row.status, "trial_id": row.config.id, **row.config.as_dict()}
        | _plan_fields(one)
        for row, one in zip(results.rows, plans, strict=True)
    ]
    left = [costs for row, costs in zip(results.rows, rows, strict=True) if not row.is_finished]
    total = {name: _sum_or_none([costs[name] for costs in left]) for name in SUMMED_FIELDS}
    seconds = total["device_seconds"]
    hours = seconds / 3600 if seconds is not None else None
    price = hours * price_per_hour if hours is not None and price_per_hour is not None else None
    return _dump_json(
        {
            "sweep": sweep.name,
            "results": results.storage.uri,
            "rows": rows,
            "to_be_done": {"trials": len(left), **total, "device_hours": hours, "price": price},
            "search": _summarize_search(sweep, placement) if sweep.num_samples is not None else None,
            "device": {
                "name": placement.card.name,
                "precision": placement.precision,
                "per_trial": placement.share,
                "trials_at_a_time": placement.at_a_time,
            }
            if placement
            else None,
        }
    )


def _plan_fields(trial_plan: TrialPlan | None) -> dict[str, Any]:
    """The numbers of a trial's plan."""
    fit, shape = (trial_plan.micro_batching, trial_plan.shape) if trial_plan else (None, None)
    return {
        "parameters": shape.num_parameters if shape else None,
        "tokens": trial_plan.tokens if trial_plan else None,
        "steps": trial_plan.steps if trial_plan else None,
        "exact": trial_plan.is_exact if trial_plan else None,
        "flops": trial_plan.flops if trial_plan else None,
        "micro_batch_size": fit.micro_batch_size if fit else None,
        "recompute": fit.recompute if fit else None,
        "peak_bytes": trial_plan.peak_bytes if trial_plan else None,
        "checkpoint_bytes": trial_plan.checkpoint_bytes if trial_plan else None,
        "estimated_seconds": trial_plan.seconds if trial_plan else None,
        "device_seconds": trial_plan.device_seconds if trial_plan else None,
    }


def _summarize_search(sweep: Sweep, placement: Placement | None) -> dict[str, Any]:
    """How many trials a search has, and what the shortest and the longest of them may take."""
    times = [one.seconds if one else None for one in plan.plan_trials(plan.representative_trials(sweep), placement)]
    known = [seconds for seconds in times if seconds is not None]
    whole = known and len(known) == len(times)
    return {
        "num_samples": sweep.num_samples,
        "shortest_seconds": min(known) if whole else None,
        "longest_seconds": max(known) if whole else None,
    }


def _sum_or_none(values: Sequence[Any]) -> Any:
    """None where one is not known."""
    return None if None in values else sum(values)


def _dump_json(content: dict[str, Any]) -> str:
    return json.dumps(_replace_nonfinite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    """The same with null for losses that are no numbers, for which JSON has no words."""
    if isinstance(value, dict):
        return {name: _replace_nonfinite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_replace_nonfinite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
