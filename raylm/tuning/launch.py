"""One launch: Ray, the line-up of what is missing, what it runs with written down, the trials run."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raylm.config.catalog import MODELS
from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import PauseReason
from raylm.events import Listeners, TrialListener
from raylm.monitor.console import Console
from raylm.monitor.state import SweepMonitor
from raylm.monitor.trackers.dispatcher import TrackerPool
from raylm.monitor.trackers.options import TrackerOptions, resolve
from raylm.planning import plan, throughput
from raylm.planning.plan import plan_trial
from raylm.planning.throughput import Placement
from raylm.results import sweep_record
from raylm.results.folder import find_results as results_standing
from raylm.results.folder import list_launches as results_launches
from raylm.results.folder import load_row, next_launch_name, parse_launch_number, write_final_status
from raylm.results.heartbeat import Heartbeat
from raylm.results.rows import STOPPED, Results, Row
from raylm.results.storage import Storage
from raylm.results.sweep_record import HardwareRecord, LaunchRecord, SweepRecord
from raylm.tuning.trial_queue import TrialQueue
from raylm.units import pluralize

if TYPE_CHECKING:
    from raylm.tuning.prepare import PreparedInputs
    from raylm.tuning.search import Suggester
    from raylm.tuning.tuner import LaunchResult


RECORDED_VERSIONS = ("raylm", "ray", "torch", "transformers", "tokenizers", "datasets", "optuna", "numpy")

STUDY_WRITE_SECONDS = 30.0
"""Writing a study anew takes the longer the more trials it has."""


@dataclass(frozen=True)
class RunOptions:
    """How a launch is to be run, besides what the sweep says."""

    retry_failed: bool = False
    """Begin failed rows again."""
    max_concurrent: int | None = None
    """Trials at a time; None: as many as the resources allow."""
    address: str | None = None
    """Of a Ray cluster; None: one that runs on this machine, else Ray is started."""
    verbose: bool = False
    """Show Ray's own messages."""
    trackers: TrackerOptions = field(default_factory=resolve)
    """Which experiment trackers are told of it."""


def run_launch(
    sweep: Sweep,
    prepared: PreparedInputs,
    existing_results: Results,
    options: RunOptions,
    console: Console,
    tracker_pool: TrackerPool,
    heartbeat: Heartbeat,
) -> PauseReason | None:
    """One launch through Ray; says why it was paused, if it was.

    Args:
        found: how the sweep stands.
        tracked: the trackers that are told of it.
    """
    with console.show_spinner("starting Ray"):
        from raylm.training.device import resolve_precision
        from raylm.tuning import cluster, nodes, tuner
    options = replace(options, address=cluster.resolve_address(options.address))
    if options.address == "local" and throughput.is_cpu_only(sweep.resources):
        resolve_precision(sweep.precision, "cpu")  # may refuse, before Ray is started
    with cluster.connect_ray(options.address, options.verbose) as dashboard:
        resources = cluster.resolve_resources(sweep.resources)
        resolve_precision(
            sweep.precision, tuner.resolve_device(resources)
        )  # may refuse; processors are taken to be alike
        nodes.check_storage(existing_results.storage)
        console.print_note(
            f"dashboard: {dashboard} (its token: ray get-auth-token)" if dashboard else "dashboard: not running"
        )
        launched = _run_queue(sweep, prepared, existing_results, options, resources, console, tracker_pool, heartbeat)
        while launched.deferred and not launched.pause_reason:
            alone = launched.deferred
            console.print_note(f"{pluralize(len(alone), 'trial')} out of memory: now one at a time, alone")
            lineup, number = (
                _build_sequential_queue(alone, existing_results.storage),
                next_launch_name(existing_results.storage),
            )
            existing_results = results_standing(sweep, existing_results.storage)
            with _open_listeners(sweep, prepared, options, existing_results, console, tracker_pool, heartbeat) as live:
                launched = tuner.run_trials(
                    sweep,
                    prepared,
                    existing_results.storage,
                    number,
                    resources,
                    None,
                    lineup,
                    lambda: None,
                    live,
                    exclusive=True,
                )
            existing_results = results_standing(sweep, existing_results.storage)
            if not launched.pause_reason and any(not row.is_finished for row in existing_results.rows):
                once = replace(options, retry_failed=False)  # what has just failed alone is not begun again
                launched = _run_queue(
                    sweep, prepared, existing_results, once, resources, console, tracker_pool, heartbeat
                )
        tracker_pool.close()  # the rest is on its way while Ray stops
        return launched.pause_reason or (None if launched.all_finished else PauseReason.INTERRUPTED)


def _run_queue(
    sweep: Sweep,
    prepared: PreparedInputs,
    existing_results: Results,
    options: RunOptions,
    resources: Mapping[str, float],
    console: Console,
    tracker_pool: TrackerPool,
    heartbeat: Heartbeat,
) -> LaunchResult:
    """All that is missing through Tune once, what is known of the sweep being written down on the way."""
    from raylm.tuning import cluster, tuner

    folder, number = existing_results.storage, next_launch_name(existing_results.storage)
    past = existing_results.record or SweepRecord(sweep.name, [])
    proposals = _build_suggester(sweep)
    lag = _resolve_delay(sweep, past, cluster.count_concurrent_trials(resources, options.max_concurrent))
    lineup = _build_queue(sweep, prepared, existing_results, past, lag, proposals, options)
    slot = _resolve_placement(sweep, options, resources)
    this = _build_launch_record(sweep, prepared, parse_launch_number(number), resources, slot, tracker_pool.sweep_id)

    last_study = -math.inf

    def write_record(force_study: bool = False) -> None:
        nonlocal last_study
        trials = [*lineup.trials, *past.trials[len(lineup.trials) :]] if proposals else sweep.trials()
        launches, over = [*past.launches, this], bool(proposals) and lineup.exhausted
        failed = frozenset(lineup.failed_ids)
        sweep_record.write(
            folder, SweepRecord(sweep.name, trials, sweep.search_name, failed, lineup.delay, over, launches)
        )
        if proposals and (force_study or time.monotonic() - last_study > STUDY_WRITE_SECONDS):
            proposals.write_study(folder)
            last_study = time.monotonic()

    lineup.skip_finished()
    write_record()
    with _open_listeners(sweep, prepared, options, existing_results, console, tracker_pool, heartbeat) as live:
        launched = tuner.run_trials(
            sweep, prepared, folder, number, resources, options.max_concurrent, lineup, write_record, live
        )
    if proposals:
        proposals.report_outcomes(lineup.unreported())  # nothing is suggested any more; the study is to be whole
    write_record(force_study=True)
    return launched


@contextlib.contextmanager
def _open_listeners(
    sweep: Sweep,
    prepared: PreparedInputs,
    options: RunOptions,
    existing_results: Results,
    console: Console,
    tracker_pool: TrackerPool,
    heartbeat: Heartbeat,
) -> Iterator[TrialListener]:
    """All who are told of the trials of a line-up, the watch first, which the others ask."""

    def estimate_flops(trial: TrialConfig) -> float:
        """Its FLOPs; a model whose shape is not known is taken for gpt2."""
        corpus = prepared.corpora.get((trial.dataset, trial.model))
        planned = plan_trial(trial, len(corpus.train.tokens)) if corpus else plan.plan_trials([trial])[0]
        if planned is None:
            return 0.0
        return planned.flops or planned.tokens * MODELS["gpt2"].shape.training_flops_per_token(trial.context_length)

    total = sweep.num_samples or len(existing_results.rows)
    watch = SweepMonitor(sweep.name, existing_results, total, estimate_flops, retry_failed=options.retry_failed)
    heartbeat.report(watch.snapshot)
    with console.show_progress(watch) as shown:
        yield Listeners([watch, shown, tracker_pool])


def _build_suggester(sweep: Sweep) -> Suggester | None:
    if sweep.search is None:
        return None
    from raylm.tuning.search import Suggester

    return Suggester(sweep)


def _resolve_delay(sweep: Sweep, previous_record: SweepRecord, num_concurrent: int) -> int | None:
    """How far a trial is behind the results that it follows from.

    That of the first launch holds for all, so that a sweep is the same whatever it is continued on: as many trials as
    ran at a time there, and as many again that may overtake a long one.
    """
    if sweep.search is None and sweep.scheduler != "asha":
        return None
    return previous_record.delay or (num_concurrent if num_concurrent == 1 else 2 * num_concurrent)


def _build_queue(
    sweep: Sweep,
    prepared: PreparedInputs,
    existing_results: Results,
    previous_record: SweepRecord,
    delay: int | None,
    suggester: Suggester | None,
    options: RunOptions,
) -> TrialQueue:
    known = {row.config.id: row for row in existing_results.rows}
    grid = iter([] if suggester else sweep.trials())

    def load_known_row(trial: TrialConfig) -> Row:
        return known.pop(trial.id, None) or load_row(existing_results.storage, trial)

    def record_stop(trial: TrialConfig, reason: str) -> None:
        last = results_launches(existing_results.storage)[-1]
        write_final_status(existing_results.storage, last, trial, STOPPED, reason)

    def count_epoch_tokens(trial: TrialConfig) -> int:
        tokens = len(prepared.corpora[trial.dataset, trial.model].train.tokens)
        return min(tokens, trial.max_train_tokens or tokens)

    return TrialQueue(
        suggester or (lambda outcomes: next(grid, None)),
        max_trials=sweep.num_samples or len(existing_results.rows),
        delay=delay,
        load_row=load_known_row,
        record_stop=record_stop,
        count_epoch_tokens=count_epoch_tokens if sweep.scheduler == "asha" else None,
        retry_failed=options.retry_failed,
        recorded_ids=[trial.id for trial in previous_record.trials] if suggester else [],
        failed_ids=previous_record.failed_ids,
    )


def _build_sequential_queue(trials: Sequence[TrialConfig], storage: Storage) -> TrialQueue:
    """These trials, none of which waits for another."""
    waiting = iter(trials)
    return TrialQueue(
        lambda outcomes: next(waiting, None),
        max_trials=len(trials),
        delay=None,
        load_row=lambda trial: load_row(storage, trial),
    )


def _resolve_placement(sweep: Sweep, options: RunOptions, resources: Mapping[str, float]) -> Placement | None:
    """What a trial runs on, for the estimate of its time; None where that is elsewhere, or not known."""
    if options.address != "local":
        return None
    asked, cpus = sweep.resources.gpus, int(resources["cpu"])
    return throughput.find_placement(
        Resources(gpus="auto" if asked == "auto" else resources["gpu"], cpus=cpus), sweep.precision
    )


def _build_launch_record(
    sweep: Sweep,
    prepared: PreparedInputs,
    launch_number: int,
    resources: Mapping[str, float],
    placement: Placement | None,
    sweep_id: str,
) -> LaunchRecord:
    """Return the record of a launch that is about to begin."""
    return LaunchRecord(
        number=launch_number,
        sweep_id=sweep_id,
        started=utc_now(),
        versions={name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
        python=platform.python_version(),
        git_commit=_find_git_commit(),
        hardware=HardwareRecord(
            machine=platform.machine(),
            system=platform.platform(),
            cpus=os.cpu_count(),
            trials_on=placement.card.name if placement else None,
        ),
        precision=sweep.precision,
        resources_per_trial=dict(resources),
        slot=throughput.placement_to_record(placement) if placement else None,
        models=prepared.model_records(),
        data=prepared.data_records(),
    )


def _find_git_commit() -> str | None:
    """The commit of the checkout that the command was given in, if it was in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def utc_now() -> str:
    """This moment, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
