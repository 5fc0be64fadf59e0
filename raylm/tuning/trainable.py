"""Ray Tune's function trainable: one attempt of a trial, resumed from its latest checkpoint in storage."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch
from huggingface_hub.utils.tqdm import disable_progress_bars
from ray import tune

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import (
    PauseReason,
    RestartError,
    UserError,
    find_disk_limit,
    is_disk_full,
    summarize,
)
from raylm.events import format_evaluation
from raylm.machine import machine_memory
from raylm.results.folder import open_latest_checkpoint
from raylm.results.logs import log_file_name
from raylm.results.progress import MicroBatching, StepMetrics
from raylm.results.zero_shot import load_zero_shot, write_zero_shot, zero_shot_key
from raylm.training import device, models
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune
from raylm.tuning import prepare, rank_actors, trial_process
from raylm.tuning.coordinator import MAX_DEATHS, Command
from raylm.tuning.prepare import LaunchContext
from raylm.tuning.rank_actors import RankJob
from raylm.tuning.reporting import AsyncReporter, CoordinatorClient, TrialGauges
from raylm.tuning.trial_process import MAX_LEAK_FRACTION, LeakCheck, MemoryWatchdog, print_timestamped
from raylm.units import GIB

INTERMEDIATE_CHECKPOINT_SCORE = 1e9
"""Score of a checkpoint between two evaluations: Tune keeps it beside the one of the best evaluation."""
MAX_COPY_FRACTION = 0.3
"""Largest checkpoint that is copied to the host's memory, as a fraction of the trial's share of it: torch keeps that
memory for the next copy, in blocks of up to twice the size of a tensor."""
COORDINATOR_TIMEOUT_SECONDS = 5
"""Time limit of a call to the coordinator that must not block the end of a process."""

LEAK_CHECK = LeakCheck()
"""Leak check of this process, which Tune gives one trial after another."""


def train_gpt2(config: dict[str, Any], context: LaunchContext, called_at: float | None = None) -> None:
    """Run one attempt of a trial.

    Errors that a retry cannot fix are reported as the trial's end. All others are raised, and Tune starts the trial
    again.

    Args:
        config: the trial, as Tune holds it.
        called_at: time at which Tune has called the trial's function, before its imports, in seconds since 1970;
            None: now.

    Raises:
        RestartError: if the trial has to run in a fresh process or on another node; it does not count as an error.
    """
    trial = TrialConfig.from_record(config)
    context = context.for_trial(trial)
    if LEAK_CHECK.leaked_bytes > MAX_LEAK_FRACTION * context.memory_fraction * machine_memory()[1]:
        raise RestartError(f"its process has grown by {LEAK_CHECK.leaked_bytes / GIB:.1f} GiB; starting a fresh one")
    gauges = TrialGauges(context.storage.name, trial.run_name, context.device)
    client = CoordinatorClient(context.coordinator, trial.run_name, gauges, called_at)
    with _capture_output(context, trial.run_name, rank=0):
        _Attempt(trial, context, client).run()


def _capture_output(context: LaunchContext, run_name: str, rank: int) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the output of this process goes to its log file."""
    trial_process.set_worker_environment()
    disable_progress_bars()
    log_file = f"{context.launch_name}/{run_name}/{log_file_name(rank)}"
    return trial_process.capture_output(context.storage, log_file)


@contextlib.contextmanager
def _rank_context(context: LaunchContext, run_name: str, rank: int) -> Iterator[None]:
    """Prepare the process of a rank other than the first for training."""
    with _capture_output(context, run_name, rank), _limit_memory(context, run_name):
        trial_process.prepare_gpu(context.gpus_per_rank if context.device != "cpu" else 0)
        yield


@contextlib.contextmanager
def _limit_memory(context: LaunchContext, run_name: str) -> Iterator[None]:
    """Limit this process to its share of the machine, and free memory at the end for the next trial."""

    def record_memory_error(message: str) -> None:
        ray.get(context.coordinator.record_memory_error.remote(run_name, message), timeout=COORDINATOR_TIMEOUT_SECONDS)

    torch.set_num_threads(context.threads_per_rank)
    watchdog = MemoryWatchdog(context.memory_fraction, record_memory_error, context.device)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
        on_gpu = context.device != "cpu" and torch.accelerator.is_available()
        if on_gpu and device.ABILITIES[context.device].has_cuda:
            device.empty_host_cache()  # pinned memory of checkpoints
        LEAK_CHECK.measure(partial(device.gpu_bytes_in_use, context.device) if on_gpu else lambda: 0)
        if on_gpu:
            device.free_gpu_memory(context.device)


class _Attempt:
    """One attempt of a trial, in the process of its first rank."""

    def __init__(self, trial: TrialConfig, context: LaunchContext, client: CoordinatorClient) -> None:
        self._trial, self._context, self._client = trial, context, client
        self._coordinator, self._run_name = context.coordinator, trial.run_name

    def run(self) -> None:
        """Train, unless the trial has used up its attempts; report its end if it is not done."""
        restart_reason = ray.get(self._coordinator.get_restart_reason.remote(self._run_name))
        after = f", after: {restart_reason}" if restart_reason else ""
        print_timestamped(f"process {os.getpid()} on {platform.node()}{after}")
        if memory_error := ray.get(self._coordinator.get_memory_error.remote(self._run_name)):
            is_final = self._context.exclusive
            _report_end({"reason": f"{memory_error}, alone on its machine"} if is_final else {"memory": memory_error})
            return
        errors = ray.get(self._coordinator.get_errors.remote(self._run_name))
        if len(errors) > self._context.max_failures:
            _report_end({"reason": errors[-1]})
            return
        node_id = ray.get_runtime_context().get_node_id()
        deaths = ray.get(self._coordinator.start_attempt.remote(self._run_name, node_id))
        if deaths >= MAX_DEATHS:
            count = f"its process died {deaths} times without a new checkpoint between them"
            _report_end({"reason": f"{count}, the last time with: {restart_reason}"})
            return
        try:
            self._attempt()
        finally:
            if not isinstance(sys.exception(), rank_actors.DeadRankError):
                with contextlib.suppress(ray.exceptions.RayError):  # the coordinator is gone with the launch
                    end = self._coordinator.end_attempt.remote(self._run_name)
                    ray.get(end, timeout=COORDINATOR_TIMEOUT_SECONDS)

    def _attempt(self) -> None:
        """Train to the end, a pause or a restart."""
        with _limit_memory(self._context, self._run_name):
            self._train_or_report()
        if self._client.should_exit and self._client.command is Command.MIGRATE:
            raise RestartError("its machine is about to be taken away; its checkpoint is saved")
        if self._client.should_exit:
            _report_end({"paused": PauseReason.INTERRUPTED})

    def _train_or_report(self) -> None:
        """Train; report errors that end the trial or pause the launch, and raise those that are retried."""
        try:
            if not self._client.should_exit:
                self._train()
        except UserError as error:
            _report_end({"reason": str(error)})
        except (rank_actors.DeadRankError, RestartError):
            raise
        except Exception as error:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            if is_disk_full(error):  # does not count towards max_failures
                _report_end({"paused": find_disk_limit(error), "detail": summarize(error)})
            elif self._record_error(error) > self._context.max_failures:
                _report_end({"reason": summarize(error)})
            else:
                raise

    def _record_error(self, error: Exception, timeout: float | None = None) -> int:
        """Record an error of the trial; return the number of its errors in this launch."""
        reference = self._coordinator.record_error.remote(self._run_name, summarize(error))
        return int(ray.get(reference, timeout=timeout))

    def _train(self) -> None:
        """Train until the trial is done or has to pause, together with its other ranks.

        Raises:
            UserError: if the trial cannot run on so many ranks, or its model cannot be loaded.
            WorkError: if torch cannot use the GPU.
        """
        trial, context = self._trial, self._context
        if problem := validation.check_batch_sizes("batch_size", [trial.batch_size], context.world_size):
            raise UserError(str(problem))  # a search may suggest such a trial
        trial_process.prepare_gpu(context.gpus_per_rank if context.device != "cpu" else 0)
        with open_latest_checkpoint(context.storage, trial, context.launches) as checkpoint:
            print_timestamped(f"resumes from {checkpoint.name}" if checkpoint else "starts")
            hooks = TrainingHooks(
                on_out_of_memory=partial(_record_limit, self._coordinator, self._size_key),
                on_initial_loss=None if checkpoint else self._claim_zero_shot(),
            )
            train_fn = partial(
                finetune,
                trial,
                source=self._resolve_source(),
                options=self._choose_options(),
                hooks=hooks,
                resume_from=checkpoint,
            )
            corpus = context.corpora[trial.corpus_key]
            rank_context = partial(_rank_context, context, self._run_name)
            job = RankJob(self._run_name, train_fn, rank_context, context.world_size, context.device)
            record_error = partial(self._record_error, timeout=COORDINATOR_TIMEOUT_SECONDS)
            with AsyncReporter() as reporter, rank_actors.start_rank_actors(job, corpus, record_error) as dist_context:

                def on_step(step: StepMetrics) -> None:
                    reporter.raise_if_failed()
                    self._client.on_step(step)

                hooks = replace(hooks, on_step=on_step, is_checkpoint_due=self._client.checkpoint_due)
                self._report(train_fn(corpus=ray.get(corpus), dist_context=dist_context, hooks=hooks), reporter)

    def _claim_zero_shot(self) -> Callable[[float, str], None] | None:
        """Return the function that records the loss before fine-tuning; None if it is recorded or being computed."""
        trial, storage = self._trial, self._context.storage
        claim = self._coordinator.claim_zero_shot.remote(zero_shot_key(trial), self._run_name)
        if not ray.get(claim) or load_zero_shot(storage, trial) is not None:
            return None
        return partial(write_zero_shot, storage, trial)

    def _resolve_source(self) -> models.ModelSource:
        """Return the trial's model, with its files on this machine."""
        context, key = self._context, (self._trial.model, self._trial.pretrained)
        source, packed = context.sources[key], context.packed_models.get(key)
        if packed is None or ray.get_runtime_context().get_node_id() == context.driver_node_id:
            return source
        return prepare.receive_model(source, ray.get(packed))

    def _choose_options(self) -> ExecutionOptions:
        """Return device, precision and micro-batching; trials of the same size share a limit of the latter."""
        context = self._context
        precision = device.resolve_precision(context.precision, context.device)
        name = "" if context.device == "cpu" else f" ({device.name_device(context.device)})"
        print_timestamped(f"trains on {context.device}{name} in {precision}")
        limit = ray.get(self._coordinator.micro_batching_limit.remote(self._size_key))
        return context.plan_options(self._trial, precision, limit)

    @property
    def _size_key(self) -> str:
        """Key of trials that need the same memory per window."""
        return f"{self._trial.model} at {self._trial.context_length}"

    def _report(self, evaluations: Iterator[Evaluation], reporter: AsyncReporter) -> None:
        """Report each evaluation with its checkpoint to Tune, until the trial ends or has to exit."""
        max_copy_bytes = MAX_COPY_FRACTION * self._context.memory_fraction * machine_memory()[1]
        for evaluation in evaluations:
            metrics = evaluation.metrics()
            if evaluation.diverged:
                print_timestamped("diverged: the loss is not finite")
                if evaluation.trainer.options.precision == "float16":
                    print_timestamped("float16 overflows above 65,504; precision='float32' does not")
                reporter.wait()
                tune.report(metrics)
                return
            is_evaluated = "val_loss" in metrics
            print_timestamped(format_evaluation(metrics) if is_evaluated else f"saved at step {metrics['step']:,}")
            metrics["checkpoint_score"] = metrics.get("val_loss", INTERMEDIATE_CHECKPOINT_SCORE)
            reporter.submit(metrics, partial(evaluation.start_saving, max_copy_bytes=max_copy_bytes))
            self._client.on_checkpoint(metrics)
            if self._client.command is not Command.CONTINUE and not evaluation.trainer.progress.is_complete:
                self._client.should_exit = True
                return


def _record_limit(coordinator: Any, size_key: str, smaller: MicroBatching) -> None:
    """Record the micro-batching that a trial falls back to, for other trials of its size; called by every rank."""
    print_timestamped(f"out of memory: continues with {smaller}")
    ray.get(coordinator.micro_batching_limit.remote(size_key, smaller))


def _report_end(metrics: dict[str, str]) -> None:
    """Report to Tune why a trial ends that is not done."""
    print_timestamped("ends, " + ", ".join(f"{name}: {value}" for name, value in metrics.items()))
    tune.report(metrics)
