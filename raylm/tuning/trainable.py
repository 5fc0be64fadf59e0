"""Ray Tune's function trainable around the loop: report, checkpoint, go on from the newest one in storage."""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch
from ray import tune

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason, RestartError, UserError, is_disk_full, summarize
from raylm.events import format_evaluation as live_evaluation
from raylm.numerics import windows_per_rank
from raylm.planning.devices import machine_memory
from raylm.planning.memory import MemoryModel
from raylm.results.folder import open_latest_checkpoint
from raylm.results.progress import MicroBatching, StepMetrics
from raylm.training import device, models
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune
from raylm.tuning import prepare, rank_actors, trial_process
from raylm.tuning.coordinator import Command
from raylm.tuning.prepare import LaunchContext
from raylm.tuning.reporting import AsyncReporter, CoordinatorClient, TrialGauges
from raylm.tuning.trial_process import MAX_LEAK_FRACTION, LeakCheck, MemoryWatchdog
from raylm.units import GIB

INTERMEDIATE_CHECKPOINT_SCORE = 1e9
"""Score of a checkpoint between two evaluations, so that Tune keeps the best evaluation's beside it."""


LEAK_CHECK = LeakCheck()
"""Of this process, which Tune gives one trial after another."""


def train_gpt2(config: dict[str, Any], context: LaunchContext) -> None:
    """One trial. What no retry mends is reported as the trial's end; all else is raised, and Tune starts it again."""
    trial = TrialConfig.from_record(config)
    context = context.for_trial(trial)
    if LEAK_CHECK.leaked_bytes > MAX_LEAK_FRACTION * context.memory_fraction * machine_memory()[1]:
        raise RestartError(f"its process has grown by {LEAK_CHECK.leaked_bytes / GIB:.1f} GiB; a fresh one follows")
    gauges = TrialGauges(context.storage.name, trial.run_name, context.device)
    contact = CoordinatorClient(context.coordinator, trial.run_name, gauges)
    with trial_process.capture_output(
        context.storage, f"{context.launch_name}/{trial.run_name}/{trial_process.log_file_name(0)}"
    ):
        _run_attempt(trial, context, contact)


def _run_attempt(trial: TrialConfig, context: LaunchContext, client: CoordinatorClient) -> None:
    """See `train_gpt2`."""
    why = ray.get(context.coordinator.get_restart_reason.remote(trial.run_name))
    trial_process.print_timestamped(f"process {os.getpid()} on {platform.node()}{f', after: {why}' if why else ''}")
    if eaten := ray.get(context.coordinator.get_memory_error.remote(trial.run_name)):
        _report_end({"reason": f"{eaten}, alone on its machine"} if context.exclusive else {"memory": eaten})
        return
    if len(errors := ray.get(context.coordinator.get_errors.remote(trial.run_name))) > context.max_failures:
        _report_end({"reason": errors[-1]})
        return
    with _limit_memory(context, trial.run_name):
        try:
            if not client.should_exit:
                _train(trial, context, client)
        except UserError as error:
            _report_end({"reason": str(error)})
        except (rank_actors.DeadRankError, RestartError):
            raise
        except Exception as error:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            if is_disk_full(error):  # not the trial's fault
                _report_end({"paused": PauseReason.DISK_FULL, "detail": summarize(error)})
            elif (
                ray.get(context.coordinator.record_error.remote(trial.run_name, summarize(error)))
                > context.max_failures
            ):
                _report_end({"reason": summarize(error)})
            else:
                raise
    if client.should_exit and client.command is Command.MIGRATE:
        raise RestartError("its machine is about to be taken away; it was saved")
    if client.should_exit:
        _report_end({"paused": PauseReason.INTERRUPTED})


def _report_end(metrics: dict[str, str]) -> None:
    """Reports why a trial ends that is not done."""
    trial_process.print_timestamped("ends, " + ", ".join(f"{name}: {value}" for name, value in metrics.items()))
    tune.report(metrics)


@contextlib.contextmanager
def _limit_memory(context: LaunchContext, run_name: str) -> Iterator[None]:
    """Holds a process of a trial to its part of the machine, and leaves it as it was for the next trial."""
    torch.set_num_threads(context.threads_per_rank)
    guard = MemoryWatchdog(
        context.memory_fraction,
        lambda what: ray.get(context.coordinator.record_memory_error.remote(run_name, what), timeout=5),
    )
    guard.start()
    try:
        yield
    finally:
        guard.stop()
        on_gpu = context.device == "cuda"
        LEAK_CHECK.measure(torch.cuda.memory_allocated() if on_gpu else 0)
        if on_gpu:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _rank_context(context: LaunchContext, run_name: str, rank: int) -> Iterator[None]:
    """What the process of a rank but the first works within."""
    with (
        trial_process.capture_output(
            context.storage, f"{context.launch_name}/{run_name}/{trial_process.log_file_name(rank)}"
        ),
        _limit_memory(context, run_name),
    ):
        yield


def _train(trial: TrialConfig, context: LaunchContext, client: CoordinatorClient) -> None:
    """Trains a trial to its end, or until it is to pause."""
    if problem := validation.check_batch_sizes(
        "batch_size", [trial.batch_size], context.world_size
    ):  # a search may come to this
        raise UserError(str(problem))
    source = _resolve_source(trial, context)
    kind = device.resolve_precision(context.precision, context.device)
    corpus, within = context.corpora[trial.dataset, trial.model], partial(_rank_context, context, trial.run_name)

    def record_error(error: Exception) -> None:
        ray.get(context.coordinator.record_error.remote(trial.run_name, summarize(error)), timeout=5)

    fit, shape = _choose_micro_batching(trial, context, kind), f"{trial.model} at {trial.context_length}"

    def record_limit(smaller: MicroBatching) -> None:
        trial_process.print_timestamped(f"out of memory: goes on with {smaller}")
        ray.get(context.coordinator.micro_batching_limit.remote(shape, smaller))

    with open_latest_checkpoint(context.storage, trial) as checkpoint:
        trial_process.print_timestamped(f"goes on from {checkpoint.name}" if checkpoint else "begins")
        limit = ray.get(context.coordinator.micro_batching_limit.remote(shape))
        options, hooks = (
            ExecutionOptions(context.device, kind, fit, limit),
            TrainingHooks(on_out_of_memory=record_limit),
        )
        work = partial(
            finetune,
            trial,
            source=source,
            options=options,
            hooks=hooks,
            resume_from=checkpoint,
        )
        with (
            AsyncReporter() as reporter,
            rank_actors.start_rank_actors(
                trial.run_name, work, corpus, within, context.world_size, context.device, record_error
            ) as ranks,
        ):

            def on_step(step: StepMetrics) -> None:
                reporter.raise_if_failed()
                client.on_step(step)

            first_rank_hooks = replace(hooks, on_step=on_step, is_checkpoint_due=client.checkpoint_due)
            evaluations = work(corpus=ray.get(corpus), dist_context=ranks, hooks=first_rank_hooks)
            _report_evaluations(evaluations, reporter, client)


def _resolve_source(trial: TrialConfig, context: LaunchContext) -> models.ModelSource:
    """The model of a trial, its files on this machine."""
    source, packed = (
        context.sources[trial.model, trial.pretrained],
        context.packed_models.get((trial.model, trial.pretrained)),
    )
    if packed is None or ray.get_runtime_context().get_node_id() == context.driver_node_id:
        return source
    return prepare.receive_model(source, ray.get(packed))


def _report_evaluations(evaluations: Iterator[Evaluation], reporter: AsyncReporter, client: CoordinatorClient) -> None:
    """Hands Tune each evaluation with its checkpoint, which it carries into storage."""
    for evaluation in evaluations:
        if evaluation.diverged:
            trial_process.print_timestamped("diverged: the loss is not finite")
            reporter.wait()
            tune.report(evaluation.metrics())
            return
        metrics = evaluation.metrics()
        trial_process.print_timestamped(
            live_evaluation(metrics) if "val_loss" in metrics else f"saved at step {metrics['step']:,}"
        )
        metrics["checkpoint_score"] = metrics.get("val_loss", INTERMEDIATE_CHECKPOINT_SCORE)
        reporter.submit(metrics, evaluation.save)
        client.on_checkpoint(metrics)
        if client.command is not Command.CONTINUE and not evaluation.trainer.progress.is_complete:
            client.should_exit = True
            return


def _choose_micro_batching(trial: TrialConfig, context: LaunchContext, precision: str) -> MicroBatching:
    """What fits into a rank's share of its device; all that it has of a batch where the model's shape is not known."""
    shape = context.shapes[trial.model, trial.pretrained]
    if shape is None:
        return MicroBatching(windows_per_rank(trial.batch_size, context.world_size))
    on_gpu = context.device == "cuda"
    available = (
        torch.cuda.mem_get_info()[1] * context.gpus_per_rank
        if on_gpu
        else machine_memory()[1] * context.memory_fraction
    )
    return MemoryModel(shape, trial, context.device, precision, context.world_size).choose_micro_batching(available)
