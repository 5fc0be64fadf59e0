"""Runs of Ray Tune: a queue of trials from its first trial to its last, or until something pauses the launch."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm import stages
from raylm.config.dataset import CorpusKey
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason
from raylm.events import TrialListener
from raylm.imports import pause_garbage_collection
from raylm.results.storage import Storage
from raylm.stages import mark_stage
from raylm.tuning import prepare, ray_private
from raylm.tuning.callbacks import LaunchCallback, StepPoller, restore_signal_handlers
from raylm.tuning.coordinator import Coordinator
from raylm.tuning.prepare import LaunchContext, PreparedInputs
from raylm.tuning.resources.capacity import Capacity
from raylm.tuning.resources.requests import build_placement_group, estimate_gpu_memory_gib, resolve_world_size
from raylm.tuning.searcher import QueueScheduler, QueueSearcher, default_metric, get_trial_config
from raylm.tuning.trial_queue import TrialQueue

TUNE_ENVIRONMENT = {
    "TUNE_MAX_PENDING_TRIALS_PG": "100",  # Tune's default for a searcher, 1, starts trials one after another
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's TensorBoard files count reports instead of steps
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a checkpoint between two evaluations has no loss
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # raylm shows the progress
}
"""Settings of Tune in the driver's environment."""
COORDINATOR_ENVIRONMENT = {"env_vars": {"RAYLM_COORDINATOR": "1"}}
"""Environment of the coordinator: one of its own, so that it takes none of the processes that wait for trials."""
MAX_PROCESS_FAILURES = 20
"""Maximum number of times that the process or the node of a trial may die; errors that it raises are counted apart."""


# ---- device and precision -----------------------------------------------------------------------------------------


def resolve_device(resources: Mapping[str, float]) -> str:
    """Return the type of device that trials compute on: `cpu`, or an empty string for the GPU that torch finds there.

    Ray's count of GPUs does not tell their type. Each trial asks torch on its own node.
    """
    return "" if resources["gpu"] else "cpu"


# ---- a run of Tune ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuneResult:
    """Result of running one queue."""

    all_finished: bool
    """True if all trials of the queue were started and ended."""
    pause_reason: PauseReason | None
    """Reason for which the launch was paused; None if it was not."""
    deferred: list[TrialConfig]
    """Trials that ran out of memory beside others."""


@dataclass(frozen=True)
class TuneRunner:
    """Runner of trial queues through Ray Tune, on the connected cluster."""

    sweep: Sweep
    prepared: PreparedInputs
    storage: Storage
    """Results folder of the sweep."""
    resources: Mapping[str, float]
    """Resources of a trial: `cpu` and `gpu`."""
    capacity: Capacity
    """Nodes of the cluster."""
    precision: str
    """Precision of all trials, as `nodes.resolve_precision` returns it."""
    deadline: float | None = None
    """Value of `time.monotonic()` at which the time budget is used up; None: unlimited."""

    def run(
        self,
        launches: Sequence[str],
        queue: TrialQueue,
        listener: TrialListener,
        on_change: Callable[[], None] = lambda: None,
        max_concurrent: int | None = None,
        *,
        exclusive: bool = False,
    ) -> TuneResult:
        """Run the trials of a queue until all have ended or the launch is paused.

        Args:
            launches: names of the launches' folders in the results folder, last the one of this run.
            on_change: called when a trial was added to the queue.
            exclusive: run one trial at a time; a trial that runs out of memory has failed then.

        Raises:
            WorkError: if Tune itself fails.
        """
        os.environ.update(TUNE_ENVIRONMENT)
        ray_private.disable_tune_usage_stats()
        ray_private.keep_trials_in_plain_processes()
        context = self._build_context(launches, exclusive)
        callback = LaunchCallback(self.storage, launches, queue, listener, context.coordinator, deadline=self.deadline)
        mark_stage("Tune starts")
        tuner = self._build_tuner(
            context, queue, callback, QueueSearcher(queue, on_change), 1 if exclusive else max_concurrent
        )
        with (
            StepPoller(context.coordinator, listener, callback.running),
            restore_signal_handlers(),
            ray_private.hide_credentials(),
        ):
            try:
                tuner.fit()
            except Exception as error:  # of any class; finished trials are in storage
                callback.handle_tune_error(error, exclusive)
            mark_stage("Tune has ended")
            _mark_trial_stages(context.coordinator)
        return TuneResult(queue.all_finished, callback.pause_reason, list(callback.deferred.values()))

    def count_concurrent_trials(self, max_concurrent: int | None) -> int:
        """Return the number of concurrent trials once all nodes have started, at most `max_concurrent`."""
        return self.capacity.count_concurrent_trials(self.resources, max_concurrent)

    def _build_context(self, launches: Sequence[str], exclusive: bool) -> LaunchContext:
        """Return what all trials of a run share; starts the coordinator."""
        ranks = resolve_world_size(self.resources)
        driver_node = ray.get_runtime_context().get_node_id()
        pinned = NodeAffinitySchedulingStrategy(driver_node, soft=False)  # it survives the loss of any other node
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": pinned}
        options |= {"runtime_env": COORDINATOR_ENVIRONMENT}
        return LaunchContext(
            storage=self.storage,
            launches=launches,
            corpora=self._corpora,
            sources=self.prepared.sources,
            shapes=self.prepared.shapes,
            driver_node_id=driver_node,
            packed_models=self._packed_models,
            precision=self.precision,
            device=resolve_device(self.resources),
            world_size=ranks,
            gpus_per_rank=self.resources["gpu"] / ranks,
            shareable_devices=[] if exclusive else self._shareable_devices,
            threads_per_rank=int(self.resources["cpu"]) // ranks,
            memory_fraction=self.capacity.compute_memory_fraction(self.resources) / ranks,
            max_failures=self.sweep.max_failures,
            exclusive=exclusive,
            coordinator=ray.remote(**options)(Coordinator).remote(),
        )

    @functools.cached_property
    def _corpora(self) -> dict[CorpusKey, Any]:
        """Ray references to the corpora."""
        return {key: ray.put(corpus) for key, corpus in self.prepared.corpora.items()}

    @functools.cached_property
    def _packed_models(self) -> dict[tuple[str, bool], Any]:
        """Ray references to the files of models in local folders; empty if the cluster has one node only."""
        if self.capacity.has_one_node:
            return {}
        packed = {key: prepare.ship_model(source) for key, source in self.prepared.sources.items()}
        return {key: ray.put(files) for key, files in packed.items() if files is not None}

    @functools.cached_property
    def _shareable_devices(self) -> list[Any]:
        """GPUs that trials may share, with the number of trials that may; empty if the sweep does not ask for it."""
        is_asked = self.sweep.resources.gpus == "auto" and self.resources["gpu"]
        return self.capacity.find_shareable_devices(int(self.resources["cpu"])) if is_asked else []

    def _build_tuner(
        self,
        context: LaunchContext,
        queue: TrialQueue,
        callback: LaunchCallback,
        searcher: QueueSearcher,
        max_concurrent: int | None,
    ) -> tune.Tuner:
        path, filesystem = self.storage.tune_storage()
        is_asha, launches = self.sweep.scheduler == "asha", context.launches
        scheduler = QueueScheduler(queue, self.storage, launches) if is_asha else self.sweep.scheduler
        trainable = tune.with_parameters(train_gpt2, context=context)
        trainable.__name__ = self.sweep.name  # name of the trials' actors in Ray's dashboard
        return tune.Tuner(
            tune.with_resources(trainable, self.resource_request(context)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                **default_metric(scheduler, queue.measure),
                num_samples=queue.max_trials,
                max_concurrent_trials=max_concurrent,
                trial_name_creator=_run_name,
                trial_dirname_creator=_run_name,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=context.launch_name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_FAILURES),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute="checkpoint_score", checkpoint_score_order="min"
                ),
                callbacks=[callback, JsonLoggerCallback(), CSVLoggerCallback()],
                progress_reporter=ray_private.silent_progress_reporter(),
                verbose=0,
            ),
        )

    def resource_request(self, context: LaunchContext) -> Callable[[Mapping[str, Any]], tune.PlacementGroupFactory]:
        """Return the function by which Tune asks for the resources of a trial.

        Tune pickles it into the class of the trials' actors, which Ray limits to 100 MB: it must not hold corpora.
        """
        max_gib = self.capacity.max_gpu_memory_gib() if self.resources["gpu"] >= 1 else 0.0
        return functools.partial(_request_resources, context, self.resources, max_gib)


def _mark_trial_stages(coordinator: Any) -> None:
    """Log the stages of the first trial's process, if they are shown."""
    if stages.log.isEnabledFor(logging.INFO):
        for name, reached_at in ray.get(coordinator.get_first_stages.remote()).items():
            mark_stage(name, reached_at)


def train_gpt2(config: dict[str, Any], context: LaunchContext) -> None:
    """Run one attempt of a trial in its process, the only one that imports what trains."""
    called_at = time.time()
    with pause_garbage_collection():
        from raylm.tuning import trainable

    trainable.train_gpt2(config, context, called_at)


def _request_resources(
    context: LaunchContext, resources: Mapping[str, float], max_gib: float, config: Mapping[str, Any]
) -> tune.PlacementGroupFactory:
    """Return the resources of one trial.

    Args:
        resources: resources of a trial that shares no GPU.
        max_gib: memory of the cluster's largest GPU; 0: unknown, or no GPU is needed.
        config: the trial, as Tune holds it.
    """
    trial = TrialConfig.from_record(config)
    shape = context.shapes[trial.model, trial.pretrained]
    gib = estimate_gpu_memory_gib(trial, shape, context.precision, max_gib, context.world_size) if max_gib else 0
    return build_placement_group({**resources, "gpu": resources["gpu"] * context.gpu_fraction(trial)}, gib)


def _run_name(trial: Any) -> str:
    return get_trial_config(trial).run_name
