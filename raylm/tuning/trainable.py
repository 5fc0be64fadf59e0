"""Ray Tune's function trainable around the loop: report, checkpoint, go on from the newest one in storage."""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
import torch
from ray import tune

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import Pause, RestartError, UserError, disk_is_full
from raylm.events import evaluation as live_evaluation
from raylm.planning.devices import machine_memory
from raylm.planning.memory import Workload
from raylm.results.folder import newest_verified
from raylm.results.progress import Fit, Step
from raylm.training import device, models
from raylm.training.train import Evaluation, finetune
from raylm.tuning import prepare, rank_actors, trial_process
from raylm.tuning.coordinator import Word
from raylm.tuning.prepare import Job
from raylm.tuning.reporting import Contact, Gauges, Reporter
from raylm.tuning.trial_process import GIB, GROWN, Footprint, Guard

SCORE_ON_THE_WAY = 1e9
"""Score of a checkpoint between two evaluations, so that Tune keeps the best evaluation's beside it."""


FOOTPRINT = Footprint()
"""Of this process, which Tune gives one trial after another."""


def train_gpt2(config: dict[str, Any], job: Job) -> None:
    """One trial. What no retry mends is reported as the trial's end; all else is raised, and Tune starts it again."""
    trial = TrialConfig.recorded(config)
    job = job.of(trial)
    if FOOTPRINT.grown_bytes > GROWN * job.part * machine_memory()[1]:
        raise RestartError(f"its process has grown by {FOOTPRINT.grown_bytes / GIB:.1f} GiB; a fresh one follows")
    gauges = Gauges(job.folder.name, trial.run_name, job.device)
    contact = Contact(job.board, trial.run_name, gauges)
    with trial_process.kept(job.folder, f"{job.launch}/{trial.run_name}/{trial_process.name_of(0)}"):
        _attempt(trial, job, contact)


def _attempt(trial: TrialConfig, job: Job, contact: Contact) -> None:
    """See `train_gpt2`."""
    why = ray.get(job.board.why_again.remote(trial.run_name))
    trial_process.say(f"process {os.getpid()} on {platform.node()}{f', after: {why}' if why else ''}")
    if eaten := ray.get(job.board.out_of_memory.remote(trial.run_name)):
        _end({"reason": f"{eaten}, alone on its machine"} if job.alone else {"memory": eaten})
        return
    if len(errors := ray.get(job.board.errors.remote(trial.run_name))) > job.max_failures:
        _end({"reason": errors[-1]})
        return
    with _within_its_part(job, trial.run_name):
        try:
            if not contact.left:
                _train(trial, job, contact)
        except UserError as error:
            _end({"reason": str(error)})
        except (rank_actors.DeadRankError, RestartError):
            raise
        except Exception as error:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            if disk_is_full(error):  # not the trial's fault
                _end({"paused": Pause.DISK_FULL, "detail": _told(error)})
            elif ray.get(job.board.error.remote(trial.run_name, _told(error))) > job.max_failures:
                _end({"reason": _told(error)})
            else:
                raise
    if contact.left and contact.word is Word.MOVE:
        raise RestartError("its machine is about to be taken away; it was saved")
    if contact.left:
        _end({"paused": Pause.INTERRUPTED})


def _end(why: dict[str, str]) -> None:
    """Reports why a trial ends that is not done."""
    trial_process.say("ends, " + ", ".join(f"{name}: {value}" for name, value in why.items()))
    tune.report(why)


@contextlib.contextmanager
def _within_its_part(job: Job, run: str) -> Iterator[None]:
    """Holds a process of a trial to its part of the machine, and leaves it as it was for the next trial."""
    torch.set_num_threads(job.threads)
    guard = Guard(job.part, lambda what: ray.get(job.board.memory.remote(run, what), timeout=5))
    guard.start()
    try:
        yield
    finally:
        guard.stop()
        on_gpu = job.device == "cuda"
        FOOTPRINT.look(torch.cuda.memory_allocated() if on_gpu else 0)
        if on_gpu:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _as_rank(job: Job, run: str, rank: int) -> Iterator[None]:
    """What the process of a rank but the first works within."""
    with (
        trial_process.kept(job.folder, f"{job.launch}/{run}/{trial_process.name_of(rank)}"),
        _within_its_part(job, run),
    ):
        yield


def _told(error: Exception) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _train(trial: TrialConfig, job: Job, contact: Contact) -> None:
    """Trains a trial to its end, or until it is to pause."""
    if problem := validation.windows_for_all("batch_size", [trial.batch_size], job.ranks):  # a search may come to this
        raise UserError(str(problem))
    source = _source(trial, job)
    kind = device.resolved(job.precision, job.device)
    corpus, within = job.corpora[trial.dataset, trial.model], partial(_as_rank, job, trial.run_name)

    def note(error: Exception) -> None:
        ray.get(job.board.error.remote(trial.run_name, _told(error)), timeout=5)

    fit, shape = _fit(trial, job, kind), f"{trial.model} at {trial.context_length}"

    def on_smaller(smaller: Fit) -> None:
        trial_process.say(f"out of memory: goes on with {smaller}")
        ray.get(job.board.limit.remote(shape, smaller))

    with newest_verified(job.folder, trial) as checkpoint:
        trial_process.say(f"goes on from {checkpoint.name}" if checkpoint else "begins")
        work = partial(
            finetune,
            trial,
            source=source,
            device=job.device,
            precision=kind,
            fit=fit,
            limit=ray.get(job.board.limit.remote(shape)),
            on_smaller=on_smaller,
            resume_from=checkpoint,
        )
        with (
            Reporter() as reporter,
            rank_actors.joined(trial.run_name, work, corpus, within, job.ranks, job.device, note) as ranks,
        ):

            def on_step(step: Step) -> None:
                reporter.look()
                contact.on_step(step)

            evaluations = work(
                corpus=ray.get(corpus), ranks=ranks, on_step=on_step, checkpoint_due=contact.checkpoint_due
            )
            _report(evaluations, reporter, contact)


def _source(trial: TrialConfig, job: Job) -> models.ModelSource:
    """The model of a trial, its files on this machine."""
    source, packed = job.sources[trial.model, trial.pretrained], job.carried.get((trial.model, trial.pretrained))
    if packed is None or ray.get_runtime_context().get_node_id() == job.home:
        return source
    return prepare.unpack(source, ray.get(packed))


def _report(evaluations: Iterator[Evaluation], reporter: Reporter, contact: Contact) -> None:
    """Hands Tune each evaluation with its checkpoint, which it carries into storage."""
    for evaluation in evaluations:
        if evaluation.diverged:
            trial_process.say("diverged: the loss is not finite")
            reporter.wait()
            tune.report(evaluation.metrics())
            return
        metrics = evaluation.metrics()
        trial_process.say(live_evaluation(metrics) if "val_loss" in metrics else f"saved at step {metrics['step']:,}")
        metrics["checkpoint_score"] = metrics.get("val_loss", SCORE_ON_THE_WAY)
        reporter.hand_over(metrics, evaluation.save)
        contact.saved(metrics)
        if contact.word is not Word.GO_ON and not evaluation.trial.progress.finished:
            contact.left = True
            return


def _fit(trial: TrialConfig, job: Job, precision: str) -> Fit:
    """What fits into a rank's share of its device; all that it has of a batch where the model's shape is not known."""
    shape = job.shapes[trial.model, trial.pretrained]
    if shape is None:
        return Fit(-(-trial.batch_size // job.ranks))
    on_gpu = job.device == "cuda"
    available = torch.cuda.mem_get_info()[1] * job.gpus if on_gpu else machine_memory()[1] * job.part
    return Workload(shape, trial, job.device, precision, job.ranks).fit(available)
