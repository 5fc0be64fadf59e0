"""The race of `bench/head.py`, one row of its values per implementation."""

from __future__ import annotations

from typing import Any

from head import Head, LossFn, list_variants

from first_hour_parts.setup import Setup


def race_losses(setup: Setup, *, positions: int, width: int) -> dict[str, Any]:
    """Return loss, time and additional peak memory of each implementation; one that fails has its message."""
    positions, width, vocabulary = setup.pick((positions, width, 50257), (64, 32, 512))
    head = Head.build(positions, width, vocabulary, setup.device)
    values: dict[str, Any] = {}
    for name, loss_fn in list_variants(setup.device).items():
        try:
            values[name] = _measure_one(setup, head, loss_fn)
        except Exception as error:  # another torch, another liger-kernel, or out of memory
            values[name] = {"failed": f"{type(error).__name__}: {error}"}
    return values


def _measure_one(setup: Setup, head: Head, loss_fn: LossFn) -> dict[str, float]:
    setup.clear()
    mean = head.run(loss_fn).item()
    beside = {"GiB beside": head.peak_bytes(loss_fn) / 2**30} if setup.device == "cuda" else {}
    timing = setup.time(lambda: head.run(loss_fn))
    return {"ms": timing.wall * 1e3, **beside, "host ms": timing.host * 1e3, "loss": mean}
