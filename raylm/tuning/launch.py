"""One launch: Ray, the line-up of what is missing, what it runs with written down, the trials run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raylm.config.catalog import MODELS
from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import Pause, counted
from raylm.events import Live, Several
from raylm.monitor.console import Screen
from raylm.monitor.heartbeat import Pulse
from raylm.monitor.state import Watch
from raylm.monitor.trackers.dispatcher import Tracking
from raylm.monitor.trackers.options import Trackers, chosen
from raylm.planning import plan, throughput
from raylm.planning.plan import plan_trial
from raylm.planning.throughput import Slot
from raylm.results import sweep_record
from raylm.results.folder import find_row, launch_number, next_launch, write_ending
from raylm.results.folder import launches as results_launches
from raylm.results.folder import standing as results_standing
from raylm.results.rows import STOPPED, Results, Row
from raylm.results.storage import Storage
from raylm.results.sweep_record import Record
from raylm.tuning.trial_queue import Lineup

if TYPE_CHECKING:
    from raylm.tuning.prepare import Prepared
    from raylm.tuning.search import Proposals
    from raylm.tuning.tuner import Launched


RECORDED_VERSIONS = ("raylm", "ray", "torch", "transformers", "tokenizers", "datasets", "optuna", "numpy")

SECONDS_BETWEEN_STUDIES = 30.0
"""Writing a study anew takes the longer the more trials it has."""


@dataclass(frozen=True)
class How:
    """How a launch is to be run, besides what the sweep says."""

    retry_failed: bool = False
    """Begin failed rows again."""
    max_concurrent: int | None = None
    """Trials at a time; None: as many as the resources allow."""
    address: str | None = None
    """Of a Ray cluster; None: one that runs on this machine, else Ray is started."""
    verbose: bool = False
    """Show Ray's own messages."""
    trackers: Trackers = field(default_factory=chosen)
    """Which experiment trackers are told of it."""


def launch(
    sweep: Sweep, prepared: Prepared, found: Results, how: How, screen: Screen, tracked: Tracking
) -> Pause | None:
    """One launch through Ray; says why it was paused, if it was.

    Args:
        found: how the sweep stands.
        tracked: the trackers that are told of it.
    """
    with screen.working("starting Ray"):
        from raylm.training.device import resolved
        from raylm.tuning import cluster, nodes, tuner
    how = replace(how, address=cluster.known_address(how.address))
    if how.address == "local" and throughput.on_cpu(sweep.resources):
        resolved(sweep.precision, "cpu")  # may refuse, before Ray is started
    with cluster.started_ray(how.address, how.verbose) as dashboard:
        resources = cluster.resolved_resources(sweep.resources)
        resolved(sweep.precision, tuner.device_of(resources))  # may refuse; processors are taken to be alike
        nodes.check_storage(found.storage)
        screen.say(f"dashboard: {dashboard} (its token: ray get-auth-token)" if dashboard else "dashboard: not running")
        launched = _run_lineup(sweep, prepared, found, how, resources, screen, tracked)
        while launched.set_aside and not launched.pause_reason:
            alone = launched.set_aside
            screen.say(f"{counted(len(alone), 'trial')} out of memory: now one at a time, alone")
            lineup, number = _in_order(alone, found.storage), next_launch(found.storage)
            found = results_standing(sweep, found.storage)
            with _listening(sweep, prepared, how, lineup, found, screen, tracked) as live:
                launched = tuner.launch(
                    sweep, prepared, found.storage, number, resources, None, lineup, lambda: None, live, alone=True
                )
            found = results_standing(sweep, found.storage)
            if not launched.pause_reason and any(not row.ended for row in found.rows):
                once = replace(how, retry_failed=False)  # what has just failed alone is not begun again
                launched = _run_lineup(sweep, prepared, found, once, resources, screen, tracked)
        tracked.close()  # the rest is on its way while Ray stops
        return launched.pause_reason or (None if launched.complete else Pause.INTERRUPTED)


def _run_lineup(
    sweep: Sweep,
    prepared: Prepared,
    found: Results,
    how: How,
    resources: Mapping[str, float],
    screen: Screen,
    tracked: Tracking,
) -> Launched:
    """All that is missing through Tune once, what is known of the sweep being written down on the way."""
    from raylm.tuning import cluster, tuner

    folder, number = found.storage, next_launch(found.storage)
    past = sweep_record.read(folder) or Record(sweep.name, [])
    proposals = _proposals(sweep)
    lag = _lag(sweep, past, cluster.slots(resources, how.max_concurrent))
    lineup = _lineup(sweep, prepared, found, past, lag, proposals, how)
    slot = _slot(sweep, how, resources)
    this = _launch_record(sweep, prepared, launch_number(number), resources, slot, tracked.identity)

    last_study = -math.inf

    def write_down(whole: bool = False) -> None:
        nonlocal last_study
        trials = [*lineup.trials, *past.trials[len(lineup.trials) :]] if proposals else sweep.trials()
        launches, over = [*past.launches, this], bool(proposals) and lineup.exhausted
        failed = frozenset(lineup.failed)
        sweep_record.write(folder, Record(sweep.name, trials, sweep.searched_by, failed, lineup.lag, over, launches))
        if proposals and (whole or time.monotonic() - last_study > SECONDS_BETWEEN_STUDIES):
            proposals.write_study(folder)
            last_study = time.monotonic()

    tracked.follow(lineup.trials)
    lineup.look_ahead()
    write_down()
    with _listening(sweep, prepared, how, lineup, found, screen, tracked) as live:
        launched = tuner.launch(
            sweep, prepared, folder, number, resources, how.max_concurrent, lineup, write_down, live
        )
    if proposals:
        proposals.tell(lineup.untold())  # nothing is suggested any more; the study is to be whole
    write_down(whole=True)
    return launched


@contextlib.contextmanager
def _listening(
    sweep: Sweep, prepared: Prepared, how: How, lineup: Lineup, found: Results, screen: Screen, tracked: Tracking
) -> Iterator[Live]:
    """All who are told of the trials of a line-up, the watch first, which the others ask."""
    known = {row.config.run_name: row.config for row in found.rows}

    def config_of(run: str) -> TrialConfig:
        if run not in known:
            known.update((trial.run_name, trial) for trial in lineup.trials)  # a search has suggested it meanwhile
        return known[run]

    def work(trial: TrialConfig) -> float:
        """Its FLOPs; a model whose shape is not known is taken for gpt2."""
        corpus = prepared.corpora.get((trial.dataset, trial.model))
        planned = plan_trial(trial, len(corpus.train.tokens)) if corpus else plan.plan([trial])[0]
        if planned is None:
            return 0.0
        return planned.flops or planned.tokens * MODELS["gpt2"].shape.training_flops_per_token(trial.context_length)

    total = sweep.num_samples or len(found.rows)
    watch = Watch(sweep.name, found, total, config_of, work, retry_failed=how.retry_failed)
    with Pulse(found.storage, watch), screen.live(watch) as shown:
        yield Several([watch, shown, tracked])


def _proposals(sweep: Sweep) -> Proposals | None:
    if sweep.search is None:
        return None
    from raylm.tuning.search import Proposals

    return Proposals(sweep)


def _lag(sweep: Sweep, past: Record, slots: int) -> int | None:
    """How far a trial is behind the results that it follows from.

    That of the first launch holds for all, so that a sweep is the same whatever it is continued on: as many trials as
    ran at a time there, and as many again that may overtake a long one.
    """
    if sweep.search is None and sweep.scheduler != "asha":
        return None
    return past.lag or (slots if slots == 1 else 2 * slots)


def _lineup(
    sweep: Sweep,
    prepared: Prepared,
    found: Results,
    past: Record,
    lag: int | None,
    proposals: Proposals | None,
    how: How,
) -> Lineup:
    known = {row.config.id: row for row in found.rows}
    grid = iter([] if proposals else sweep.trials())

    def standing(trial: TrialConfig) -> Row:
        return known.pop(trial.id, None) or find_row(found.storage, trial)

    def note_stop(trial: TrialConfig, reason: str) -> None:
        last = results_launches(found.storage)[-1]
        write_ending(found.storage, last, trial, STOPPED, reason)

    def epoch_tokens(trial: TrialConfig) -> int:
        tokens = len(prepared.corpora[trial.dataset, trial.model].train.tokens)
        return min(tokens, trial.max_train_tokens or tokens)

    return Lineup(
        proposals or (lambda outcomes: next(grid, None)),
        total=sweep.num_samples or len(found.rows),
        lag=lag,
        standing=standing,
        note_stop=note_stop,
        epoch_tokens=epoch_tokens if sweep.scheduler == "asha" else None,
        retry_failed=how.retry_failed,
        recorded=[trial.id for trial in past.trials] if proposals else [],
        failed=past.failed,
    )


def _in_order(trials: Sequence[TrialConfig], folder: Storage) -> Lineup:
    """These trials, none of which waits for another."""
    waiting = iter(trials)
    return Lineup(
        lambda outcomes: next(waiting, None),
        total=len(trials),
        lag=None,
        standing=lambda trial: find_row(folder, trial),
    )


def _slot(sweep: Sweep, how: How, resources: Mapping[str, float]) -> Slot | None:
    """What a trial runs on, for the estimate of its time; None where that is elsewhere, or not known."""
    if how.address != "local":
        return None
    asked, cpus = sweep.resources.gpus, int(resources["cpu"])
    return throughput.slot(Resources(gpus="auto" if asked == "auto" else resources["gpu"], cpus=cpus), sweep.precision)


def _launch_record(
    sweep: Sweep, prepared: Prepared, number: int, resources: Mapping[str, float], slot: Slot | None, identity: str
) -> dict[str, Any]:
    """What a launch runs with: all that its numbers could depend on besides the trials' configs."""
    return {
        "number": number,
        "sweep_id": identity,
        "started": now(),
        "versions": {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "trials_on": slot.card.name if slot else None,
        },
        "precision": sweep.precision,
        "resources_per_trial": dict(resources),
        "slot": dataclasses.asdict(slot) if slot else None,
        "models": prepared.models_used(),
        "data": prepared.data_used(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that the command was given in, if it was in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def now() -> str:
    """This moment, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
