"""What `--json` prints: a report or a plan for programs, null for what is not known. No torch, no Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from raylm.config.sweep import Sweep
from raylm.planning import plan
from raylm.planning.plan import TrialPlan
from raylm.planning.throughput import Slot
from raylm.report import formats
from raylm.report.reference import Reference
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, MISSING, STOPPED, Results

STATUSES = (DONE, STOPPED, DIVERGED, FAILED, INTERRUPTED, MISSING)
TOTALS = ("tokens", "steps", "flops", "checkpoint_bytes", "estimated_seconds", "device_seconds")
"""Of the numbers of a trial's plan those that add up."""


def report_json(results: Results, reference: Reference | None = None) -> str:
    """The rows by the columns of results.csv, how many stand how, and the best run of each dataset."""
    return _text(
        {
            "results": results.storage.place,
            "rows": formats.records(results, reference),
            "counts": {status: results.count(status) for status in STATUSES},
            "best": {dataset: row.config.run_name for dataset, row in results.best_by_dataset.items()},
        }
    )


def plan_json(
    sweep: Sweep,
    found: Results,
    plans: Sequence[TrialPlan | None],
    slot: Slot | None,
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
        | _costs(one)
        for row, one in zip(found.rows, plans, strict=True)
    ]
    left = [costs for row, costs in zip(found.rows, rows, strict=True) if not row.ended]
    total = {name: _sum([costs[name] for costs in left]) for name in TOTALS}
    seconds = total["device_seconds"]
    hours = seconds / 3600 if seconds is not None else None
    price = hours * price_per_hour if hours is not None and price_per_hour is not None else None
    return _text(
        {
            "sweep": sweep.name,
            "results": found.storage.place,
            "rows": rows,
            "to_be_done": {"trials": len(left), **total, "device_hours": hours, "price": price},
            "search": _search(sweep, slot) if sweep.num_samples is not None else None,
            "device": {
                "name": slot.card.name,
                "precision": slot.precision,
                "per_trial": slot.share,
                "trials_at_a_time": slot.at_a_time,
            }
            if slot
            else None,
        }
    )


def _costs(one: TrialPlan | None) -> dict[str, Any]:
    """The numbers of a trial's plan."""
    fit, shape = (one.fit, one.shape) if one else (None, None)
    return {
        "parameters": shape.parameters if shape else None,
        "tokens": one.tokens if one else None,
        "steps": one.steps if one else None,
        "exact": one.exact if one else None,
        "flops": one.flops if one else None,
        "micro_batch_size": fit.micro_batch_size if fit else None,
        "recompute": fit.recompute if fit else None,
        "peak_bytes": one.peak_bytes if one else None,
        "checkpoint_bytes": one.checkpoint_bytes if one else None,
        "estimated_seconds": one.seconds if one else None,
        "device_seconds": one.card_seconds if one else None,
    }


def _search(sweep: Sweep, slot: Slot | None) -> dict[str, Any]:
    """How many trials a search has, and what the shortest and the longest of them may take."""
    times = [one.seconds if one else None for one in plan.plan(plan.corners(sweep), slot)]
    known = [seconds for seconds in times if seconds is not None]
    whole = known and len(known) == len(times)
    return {
        "num_samples": sweep.num_samples,
        "shortest_seconds": min(known) if whole else None,
        "longest_seconds": max(known) if whole else None,
    }


def _sum(values: Sequence[Any]) -> Any:
    """None where one is not known."""
    return None if None in values else sum(values)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same with null for losses that are no numbers, for which JSON has no words."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
