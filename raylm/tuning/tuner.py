"""A launch: the missing trials of a sweep through Ray Tune, from starting Ray to its last trial."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.progress_reporter import IS_NOTEBOOK
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason, WorkError
from raylm.events import TrialListener
from raylm.planning import memory
from raylm.planning.devices import Device, resolve_precision
from raylm.results.progress import MicroBatching
from raylm.results.storage import Storage
from raylm.training import models
from raylm.tuning import cluster, prepare
from raylm.tuning.callbacks import LaunchCallback, StepPoller
from raylm.tuning.coordinator import Coordinator
from raylm.tuning.prepare import LaunchContext, PreparedInputs
from raylm.tuning.searcher import QueueScheduler, QueueSearcher, get_trial_config
from raylm.tuning.trainable import train_gpt2
from raylm.tuning.trial_queue import TrialQueue
from raylm.units import GIB

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import; the display is ours

AWS_CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""What Tune copies from the command's environment into that of the trials (ray/tune/execution/class_cache.py)."""
MAX_PENDING_TRIALS = 100
"""Trials that wait for resources at a time; with Tune's own number for a searcher, 1, they start one after another."""
MAX_PROCESS_FAILURES = 20
"""How often the process or the node of a trial may die; errors that it raises are counted apart."""


def resolve_world_size(resources: Mapping[str, float]) -> int:
    """Processes that train a trial: one per GPU."""
    return max(1, int(resources["gpu"]))


def resolve_device(resources: Mapping[str, float]) -> str:
    """What trials compute on."""
    return "cuda" if resources["gpu"] else "cpu"


def build_placement_group(resources: Mapping[str, float], gpu_memory_gib: int = 0) -> tune.PlacementGroupFactory:
    """A bundle for each rank, all on one node; the first one has the CPUs that cannot be shared evenly.

    Args:
        card_gib: memory that each GPU must have, where the nodes tell theirs.
    """
    ranks = resolve_world_size(resources)
    share = {"CPU": resources["cpu"] // ranks, "GPU": resources["gpu"] / ranks}
    share |= {cluster.GPU_MEMORY_RESOURCE: gpu_memory_gib} if gpu_memory_gib else {}
    first = {**share, "CPU": share["CPU"] + resources["cpu"] % ranks}
    return tune.PlacementGroupFactory([first, *[share] * (ranks - 1)], strategy="STRICT_PACK")


def estimate_gpu_memory_gib(
    trial: TrialConfig, prepared: PreparedInputs, precisions: Iterable[str], max_gib: float, world_size: int = 1
) -> int:
    """Return the memory that a trial's GPU must have, in GiB, for one window at a time; at most that of the largest.

    Args:
        precisions: those that the trial trains in on the cluster's GPUs; the larger need counts.
    """
    shape = models.load_shape(prepared.sources[trial.model, trial.pretrained])
    if shape is None:
        return int(max_gib)
    memory_models = [memory.MemoryModel(shape, trial, "cuda", precision, world_size) for precision in precisions]
    needed = max(model.peak_bytes(MicroBatching(micro_batch_size=1)) for model in memory_models)
    return min(math.ceil(needed / memory.USABLE_MEMORY_FRACTION / GIB), int(max_gib))


def resolve_gpu_precisions(requested: str, devices: Sequence[tuple[Device, int]]) -> set[str]:
    """Return the precisions that trials train in on these GPUs; `auto` is bfloat16 on GPUs that are not known."""
    return {resolve_precision(requested, device) for device, _ in devices} or {
        "bfloat16" if requested == "auto" else requested
    }


@dataclass(frozen=True)
class LaunchResult:
    """How a launch came to its end."""

    all_finished: bool
    """Whether all trials were begun and have ended."""
    pause_reason: PauseReason | None
    """Why it was paused, if it was."""
    deferred: list[TrialConfig]
    """Trials that ran out of memory beside others."""


def run_trials(
    sweep: Sweep,
    prepared: PreparedInputs,
    storage: Storage,
    launch_name: str,
    resources: Mapping[str, float],
    max_concurrent: int | None,
    queue: TrialQueue,
    on_change: Callable[[], None],
    listener: TrialListener,
    *,
    exclusive: bool = False,
) -> LaunchResult:
    """Runs the trials of a line-up to their end, or until something pauses them.

    Args:
        folder: the sweep's results folder.
        number: the name of this launch's folder in it.
        on_change: told when a trial was added to the line-up.
        alone: run one trial at a time; one that runs out of memory then has failed.

    Raises:
        WorkError: if Tune itself gives up.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(MAX_PENDING_TRIALS)
    _disable_usage_stats()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's event files count reports, and know no step
    here = ray.get_runtime_context().get_node_id()
    there = NodeAffinitySchedulingStrategy(here, soft=False)  # no lost node takes it along
    lasting = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": there}
    board = ray.remote(num_cpus=0, **lasting)(Coordinator).remote()
    ranks = resolve_world_size(resources)
    job = LaunchContext(
        storage=storage,
        launch_name=launch_name,
        corpora={key: ray.put(corpus) for key, corpus in prepared.corpora.items()},
        sources=prepared.sources,
        shapes={key: models.load_shape(source) for key, source in prepared.sources.items()},
        driver_node_id=here,
        packed_models=_ship_models(prepared),
        precision=sweep.precision,
        device=resolve_device(resources),
        world_size=ranks,
        gpus_per_rank=resources["gpu"] / ranks,
        shareable_devices=_find_shareable_devices(sweep, resources, exclusive),
        threads_per_rank=int(resources["cpu"]) // ranks,
        memory_fraction=cluster.compute_memory_fraction(resources) / ranks,
        max_failures=sweep.max_failures,
        exclusive=exclusive,
        coordinator=board,
    )
    path, filesystem = storage.tune_storage()
    largest = cluster.max_gpu_memory_gib() if resources["gpu"] >= 1 else 0.0
    precisions = resolve_gpu_precisions(sweep.precision, cluster.find_shareable_devices(cpus=1)) if largest else set()

    def request_resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        trial = TrialConfig.from_record(config)
        gib = estimate_gpu_memory_gib(trial, prepared, precisions, largest, ranks) if largest else 0
        return build_placement_group({**resources, "gpu": resources["gpu"] * job.gpu_fraction(trial)}, gib)

    budget_seconds = sweep.time_budget_hours * 3600 if sweep.time_budget_hours else None
    watcher = LaunchCallback(storage, launch_name, queue, listener, board, budget_seconds)
    own_scheduler = QueueScheduler(queue, storage) if sweep.scheduler == "asha" else sweep.scheduler
    trainable = tune.with_parameters(train_gpt2, context=job)
    trainable.__name__ = sweep.name  # what Ray's dashboard calls its actors, which run one trial after another
    tuner = tune.Tuner(
        tune.with_resources(trainable, request_resources),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(queue, on_change),
            scheduler=own_scheduler,
            **_default_metric(own_scheduler),
            num_samples=queue.max_trials,
            max_concurrent_trials=1 if exclusive else max_concurrent,
            trial_name_creator=lambda trial: get_trial_config(trial).run_name,
            trial_dirname_creator=lambda trial: get_trial_config(trial).run_name,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=launch_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_FAILURES),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="checkpoint_score", checkpoint_score_order="min"
            ),
            callbacks=[watcher, JsonLoggerCallback(), CSVLoggerCallback()],
            # silent too; Tune's for notebooks would clear what is shown there already
            progress_reporter=tune.CLIReporter() if IS_NOTEBOOK else None,
            verbose=0,
        ),
    )
    with StepPoller(board, listener, watcher.running), _restore_signal_handlers(), _hide_credentials():
        try:
            tuner.fit()
        except Exception as error:  # whatever it is, what was finished is in storage
            if "low on memory" not in str(error):
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise WorkError(f"Ray Tune gave up: {lines[-1]}") from error
            watcher.handle_out_of_memory(exclusive)
    return LaunchResult(queue.all_finished, watcher.pause_reason, list(watcher.deferred.values()))


def _disable_usage_stats() -> None:
    """Keeps Tune from importing wandb and MLflow for usage statistics, which are off (`cluster`)."""
    if usage := sys.modules.get("ray.air._internal.usage"):  # Tune's own, which another Ray may do without
        vars(usage)["tag_callbacks"] = lambda callbacks: False


def _find_shareable_devices(sweep: Sweep, resources: Mapping[str, float], exclusive: bool) -> list[tuple[Device, int]]:
    """GPUs that trials may share."""
    asked = sweep.resources.gpus == "auto" and resources["gpu"] and not exclusive
    return cluster.find_shareable_devices(int(resources["cpu"])) if asked else []


def _ship_models(prepared: PreparedInputs) -> dict[tuple[str, bool], Any]:
    """Models in local folders, put where other nodes reach them, if there are or may be any."""
    if sum(number for _, number in cluster.list_node_types()) == 1:
        return {}
    packed = {key: prepare.ship_model(source) for key, source in prepared.sources.items()}
    return {key: ray.put(files) for key, files in packed.items() if files is not None}


def _default_metric(scheduler: Any) -> dict[str, str]:
    """What a scheduler of Ray's compares trials by, unless it was told."""
    if scheduler is None or isinstance(scheduler, QueueScheduler) or getattr(scheduler, "metric", None):
        return {}
    return {"metric": "adj_val_loss", "mode": "min"}


@contextlib.contextmanager
def _hide_credentials() -> Iterator[None]:
    """Hides keys that Tune would put into the runtime environment of trials, which Ray writes into a readable log.

    Trials on this machine have them all the same, from Ray's own processes.
    """
    hidden = {name: os.environ.pop(name) for name in AWS_CREDENTIAL_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _restore_signal_handlers() -> Iterator[None]:
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
