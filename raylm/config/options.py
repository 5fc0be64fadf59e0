"""Options of one run of a sweep that change neither its trials nor their results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """Options of one run of a sweep, given by the command rather than the sweep file."""

    retry_failed: bool = False
    """Run failed trials again, from their latest checkpoints."""
    max_concurrent: int | None = None
    """Maximum number of concurrent trials; None: limited by the resources only."""
    address: str | None = None
    """Address of a Ray cluster, or `local` to start Ray on this machine; None: `$RAY_ADDRESS`, else the cluster that
    this machine is a node of, else `local`."""
    wait_for_workers: bool = False
    """Let trials wait for nodes that will join the cluster, although its autoscaler does not tell of them."""
    verbose: bool = False
    """Show Ray's log messages."""
