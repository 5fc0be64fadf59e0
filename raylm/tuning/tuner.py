"""A launch: the missing trials of a sweep through Ray Tune, from starting Ray to its last trial."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.progress_reporter import IS_NOTEBOOK
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import Pause, WorkError
from raylm.events import Live
from raylm.planning import memory
from raylm.planning.devices import Card
from raylm.results.progress import Fit
from raylm.results.storage import Storage
from raylm.training import models
from raylm.tuning import cluster, prepare
from raylm.tuning.callbacks import StepsShown, Watcher
from raylm.tuning.coordinator import Board
from raylm.tuning.prepare import Job, Prepared
from raylm.tuning.searcher import FromLineup, StopsEarly, config_of
from raylm.tuning.trainable import train_gpt2
from raylm.tuning.trial_queue import Lineup

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import; the display is ours

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""What Tune copies from the command's environment into that of the trials (ray/tune/execution/class_cache.py)."""
PENDING_TRIALS = 100
"""Trials that wait for resources at a time; with Tune's own number for a searcher, 1, they start one after another."""
MOST_DEATHS = 20
"""How often the process or the node of a trial may die; errors that it raises are counted apart."""


def ranks_of(resources: Mapping[str, float]) -> int:
    """Processes that train a trial: one per GPU."""
    return max(1, int(resources["gpu"]))


def device_of(resources: Mapping[str, float]) -> str:
    """What trials compute on."""
    return "cuda" if resources["gpu"] else "cpu"


def placement(resources: Mapping[str, float], card_gib: int = 0) -> tune.PlacementGroupFactory:
    """A bundle for each rank, all on one node; the first one has the CPUs that cannot be shared evenly.

    Args:
        card_gib: memory that each GPU must have, where the nodes tell theirs.
    """
    ranks = ranks_of(resources)
    share = {"CPU": resources["cpu"] // ranks, "GPU": resources["gpu"] / ranks}
    share |= {cluster.CARD_MEMORY: card_gib} if card_gib else {}
    first = {**share, "CPU": share["CPU"] + resources["cpu"] % ranks}
    return tune.PlacementGroupFactory([first, *[share] * (ranks - 1)], strategy="STRICT_PACK")


def card_gib(trial: TrialConfig, prepared: Prepared, precision: str, largest: float, ranks: int = 1) -> int:
    """Memory that a trial's GPU must have, in GiB, for one window at a time; not more than the largest has."""
    shape = models.shape(prepared.sources[trial.model, trial.pretrained])
    if shape is None:
        return int(largest)
    kind = "float32" if precision == "float32" else "bfloat16"
    needed = memory.Workload(shape, trial, "cuda", kind, ranks).peak_bytes(Fit(micro_batch_size=1))
    return min(math.ceil(needed / memory.RESERVE / 2**30), int(largest))


@dataclass(frozen=True)
class Launched:
    """How a launch came to its end."""

    complete: bool
    """Whether all trials were begun and have ended."""
    pause_reason: Pause | None
    """Why it was paused, if it was."""
    set_aside: list[TrialConfig]
    """Trials that ran out of memory beside others."""


def launch(
    sweep: Sweep,
    prepared: Prepared,
    folder: Storage,
    number: str,
    resources: Mapping[str, float],
    max_concurrent: int | None,
    lineup: Lineup,
    on_change: Callable[[], None],
    live: Live,
    *,
    alone: bool = False,
) -> Launched:
    """Runs the trials of a line-up to their end, or until something pauses them.

    Args:
        folder: the sweep's results folder.
        number: the name of this launch's folder in it.
        on_change: told when a trial was added to the line-up.
        alone: run one trial at a time; one that runs out of memory then has failed.

    Raises:
        WorkError: if Tune itself gives up.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING_TRIALS)
    _count_nothing()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's event files count reports, and know no step
    here = ray.get_runtime_context().get_node_id()
    there = NodeAffinitySchedulingStrategy(here, soft=False)  # no lost node takes it along
    lasting = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": there}
    board = ray.remote(num_cpus=0, **lasting)(Board).remote()
    ranks = ranks_of(resources)
    job = Job(
        folder=folder,
        launch=number,
        corpora={key: ray.put(corpus) for key, corpus in prepared.corpora.items()},
        sources=prepared.sources,
        shapes={key: models.shape(source) for key, source in prepared.sources.items()},
        home=here,
        carried=_carried(prepared),
        precision=sweep.precision,
        device=device_of(resources),
        ranks=ranks,
        gpus=resources["gpu"] / ranks,
        cards=_cards(sweep, resources, alone),
        threads=int(resources["cpu"]) // ranks,
        part=cluster.part(resources) / ranks,
        max_failures=sweep.max_failures,
        alone=alone,
        board=board,
    )
    path, filesystem = folder.for_tune()
    largest = cluster.largest_card_gib() if resources["gpu"] >= 1 else 0.0

    def request(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        trial = TrialConfig.recorded(config)
        gib = card_gib(trial, prepared, sweep.precision, largest, ranks) if largest else 0
        return placement({**resources, "gpu": resources["gpu"] * job.share(trial)}, gib)

    budget_seconds = sweep.time_budget_hours * 3600 if sweep.time_budget_hours else None
    watcher = Watcher(folder, number, lineup, live, board, budget_seconds)
    own_scheduler = StopsEarly(lineup, folder) if sweep.scheduler == "asha" else sweep.scheduler
    trainable = tune.with_parameters(train_gpt2, job=job)
    trainable.__name__ = sweep.name  # what Ray's dashboard calls its actors, which run one trial after another
    tuner = tune.Tuner(
        tune.with_resources(trainable, request),
        tune_config=tune.TuneConfig(
            search_alg=FromLineup(lineup, on_change),
            scheduler=own_scheduler,
            **_metric_for(own_scheduler),
            num_samples=lineup.total,
            max_concurrent_trials=1 if alone else max_concurrent,
            trial_name_creator=lambda trial: config_of(trial).run_name,
            trial_dirname_creator=lambda trial: config_of(trial).run_name,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=number,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="checkpoint_score", checkpoint_score_order="min"
            ),
            callbacks=[watcher, JsonLoggerCallback(), CSVLoggerCallback()],
            # silent too; Tune's for notebooks would clear what is shown there already
            progress_reporter=tune.CLIReporter() if IS_NOTEBOOK else None,
            verbose=0,
        ),
    )
    with StepsShown(board, live), _signals_as_before(), _keys_kept():
        try:
            tuner.fit()
        except Exception as error:  # whatever it is, what was finished is in storage
            if "low on memory" not in str(error):
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise WorkError(f"Ray Tune gave up: {lines[-1]}") from error
            watcher.out_of_memory(alone)
    return Launched(lineup.complete, watcher.pause_reason, list(watcher.set_aside.values()))


def _count_nothing() -> None:
    """Keeps Tune from importing wandb and MLflow for usage statistics, which are off (`cluster`)."""
    if usage := sys.modules.get("ray.air._internal.usage"):  # Tune's own, which another Ray may do without
        vars(usage)["tag_callbacks"] = lambda callbacks: False


def _cards(sweep: Sweep, resources: Mapping[str, float], alone: bool) -> list[tuple[Card, int]]:
    """GPUs that trials may share."""
    asked = sweep.resources.gpus == "auto" and resources["gpu"] and not alone
    return cluster.cards_to_share(int(resources["cpu"])) if asked else []


def _carried(prepared: Prepared) -> dict[tuple[str, bool], Any]:
    """Models in local folders, put where other nodes reach them, if there are or may be any."""
    if sum(number for _, number in cluster.offers()) == 1:
        return {}
    packed = {key: prepare.pack(source) for key, source in prepared.sources.items()}
    return {key: ray.put(files) for key, files in packed.items() if files is not None}


def _metric_for(scheduler: Any) -> dict[str, str]:
    """What a scheduler of Ray's compares trials by, unless it was told."""
    if scheduler is None or isinstance(scheduler, StopsEarly) or getattr(scheduler, "metric", None):
        return {}
    return {"metric": "adj_val_loss", "mode": "min"}


@contextlib.contextmanager
def _keys_kept() -> Iterator[None]:
    """Hides keys that Tune would put into the runtime environment of trials, which Ray writes into a readable log.

    Trials on this machine have them all the same, from Ray's own processes.
    """
    hidden = {name: os.environ.pop(name) for name in KEYS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Undoes what Tune and the watcher do to the handlers of SIGINT and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
