"""JSON of reports and plans, as `--json` prints it; unknown values are null. No torch, no Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.config.sweep import Sweep
from raylm.planning import plan
from raylm.planning.plan import TrialPlan
from raylm.planning.throughput import Placement
from raylm.report import formats
from raylm.report.labels import list_varying_fields
from raylm.report.notes import collect_notes
from raylm.report.reference import ReferenceTable
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, SweepRows

STORED_STATUSES = (DONE, STOPPED, DIVERGED, FAILED, INTERRUPTED, PENDING)
SUMMED_FIELDS = ("tokens", "steps", "flops", "checkpoint_bytes", "estimated_seconds", "device_seconds")
"""Numbers of a trial's plan that are summed over trials."""


def format_report_json(
    results: SweepRows, reference: ReferenceTable | None = None, records: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Return the rows with the columns of results.csv, their count by status, and the best run of each dataset.

    `swept` names the fields that vary, `best_by` the loss that the rows of a dataset are ranked by; `notes` are those
    below the table.
    """
    return dump_json(
        {
            "results": results.storage.uri,
            "rows": formats.build_records(results, reference) if records is None else list(records),
            "swept": list_varying_fields(row.config for row in results.rows),
            "counts": {status: results.count(status) for status in STORED_STATUSES},
            "best": {dataset: row.config.run_name for dataset, row in results.best_by_dataset.items()},
            "best_by": {dataset: measure.name for dataset, measure in results.measures.items()},
            "notes": collect_notes(results),
        }
    )


def format_plan_json(
    sweep: Sweep,
    results: SweepRows,
    plans: Sequence[TrialPlan | None],
    placement: Placement | None,
    price_per_hour: float | None,
) -> str:
    """Return the costs of each trial, and their sums over the unfinished ones.

    Args:
        sweep: planned sweep.
        results: its rows.
        plans: costs of the rows, in the same order; None if unknown.
        placement: resources of a trial; None if unknown.
        price_per_hour: price of a GPU-hour, or of a machine-hour on CPU.
    """
    rows: list[dict[str, Any]] = [
        {"run": row.config.run_name, "status": row.status, "trial_id": row.config.id, **row.config.as_record()}
        | _plan_fields(trial_plan)
        for row, trial_plan in zip(results.rows, plans, strict=True)
    ]
    remaining = [costs for row, costs in zip(results.rows, rows, strict=True) if not row.is_finished]
    return dump_json(
        {
            "sweep": sweep.name,
            "results": results.storage.uri,
            "rows": rows,
            "swept": list_varying_fields(row.config for row in results.rows),
            "remaining": _sum_costs(remaining, price_per_hour),
            "search": _summarize_search(sweep, placement) if sweep.num_samples is not None else None,
            "device": _placement_fields(placement) if placement else None,
            "notes": [
                *plan.describe_excess(plans),
                *plan.describe_prepared_data(plan.planned_trials(sweep, results)),
            ],
        }
    )


def _plan_fields(trial_plan: TrialPlan | None) -> dict[str, Any]:
    """Return the numbers of a trial's plan."""
    batching, shape = (trial_plan.micro_batching, trial_plan.shape) if trial_plan else (None, None)
    return {
        "parameters": shape.num_parameters if shape else None,
        "tokens": trial_plan.tokens if trial_plan else None,
        "steps": trial_plan.steps if trial_plan else None,
        "exact": trial_plan.is_exact if trial_plan else None,
        "flops": trial_plan.flops if trial_plan else None,
        "micro_batch_size": batching.micro_batch_size if batching else None,
        "recompute": batching.recompute if batching else None,
        "peak_bytes": trial_plan.peak_bytes if trial_plan else None,
        "checkpoint_bytes": trial_plan.checkpoint_bytes if trial_plan else None,
        "estimated_seconds": trial_plan.seconds if trial_plan else None,
        "device_seconds": trial_plan.device_seconds if trial_plan else None,
    }


def _sum_costs(trials: Sequence[dict[str, Any]], price_per_hour: float | None) -> dict[str, Any]:
    """Return the summed costs of trials; a sum with an unknown term is None."""
    total = {name: _sum_or_none([costs[name] for costs in trials]) for name in SUMMED_FIELDS}
    seconds = total["device_seconds"]
    hours = seconds / 3600 if seconds is not None else None
    price = hours * price_per_hour if hours is not None and price_per_hour is not None else None
    return {"trials": len(trials), **total, "device_hours": hours, "price": price}


def _placement_fields(placement: Placement) -> dict[str, Any]:
    return {
        "name": placement.device.name,
        "precision": placement.precision,
        "per_trial": placement.devices_per_trial,
        "trials_at_a_time": placement.concurrent_trials,
    }


def _summarize_search(sweep: Sweep, placement: Placement | None) -> dict[str, Any]:
    """Return the number of trials of a search and the estimated range of their durations."""
    plans = plan.plan_trials(plan.representative_trials(sweep), placement)
    times = [trial_plan.seconds if trial_plan else None for trial_plan in plans]
    known = [seconds for seconds in times if seconds is not None]
    is_complete = known and len(known) == len(times)
    return {
        "num_samples": sweep.num_samples,
        "shortest_seconds": min(known) if is_complete else None,
        "longest_seconds": max(known) if is_complete else None,
    }


def _sum_or_none(values: Sequence[Any]) -> Any:
    """Return the sum, or None if a value is unknown."""
    return None if None in values else sum(values)


def dump_json(content: dict[str, Any]) -> str:
    """Return content as JSON, with null for numbers that are not finite."""
    return json.dumps(_replace_nonfinite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    """Return a value with null for infinities and NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: _replace_nonfinite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
