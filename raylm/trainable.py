"""Ray Tune's function trainable around the loop: report, checkpoint, go on from the newest one in storage."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray._private.state import state as ray_state

from raylm import carried, checks, models, peers, precision, results
from raylm.config import TrialConfig
from raylm.errors import Pause, RestartError, UserError, disk_is_full
from raylm.guard import GIB, GROWN, Footprint, Guard, machine_memory
from raylm.job import Job
from raylm.memory import Fit, Workload
from raylm.progress import Step
from raylm.reporter import Reporter
from raylm.train import Evaluation, finetune

SECONDS_BETWEEN_WORDS = 0.5
"""Time between two words to the driver on how far a trial is."""
CHECKPOINT_SECONDS = 600
"""A trial is saved this often at least: what the loss of its machine can cost."""
SECONDS_BETWEEN_LOOKS = 1.0
"""Time between two questions to Ray, which nodes are about to leave."""
SCORE_ON_THE_WAY = 1e9
"""Score of a checkpoint between two evaluations, so that Tune keeps the best evaluation's beside it."""


class Word(enum.Enum):
    """What a running trial is told to do."""

    GO_ON = enum.auto()
    PAUSE = enum.auto()
    """Save itself and end."""
    MOVE = enum.auto()
    """Save itself and go on elsewhere: its node is about to leave the cluster, as a spot machine after its notice."""


FOOTPRINT = Footprint()
"""Of this process, which Tune gives one trial after another."""


class Board:
    """What running trials and the driver tell each other. Runs as an actor without a share of a CPU."""

    def __init__(self) -> None:
        self._leaving: set[str] = set()
        self._looked = 0.0
        self._steps: dict[str, Step] = {}
        self._errors: dict[str, list[str]] = {}
        self._memory: dict[str, str] = {}
        self._limits: dict[str, Fit] = {}
        self._paused = False

    def step(self, run: str, node: str, step: Step) -> Word:
        """Takes down how far a run is; says what a run on this node is to do."""
        self._steps[run] = step
        return self.word(node)

    def word(self, node: str) -> Word:
        """What runs on a node are to do."""
        if self._paused:
            return Word.PAUSE
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._leaving, self._looked = set(ray_state.get_draining_nodes()), time.monotonic()
        return Word.MOVE if node in self._leaving else Word.GO_ON

    def steps(self) -> dict[str, Step]:
        """How each run is going."""
        return self._steps

    def error(self, run: str, told: str) -> int:
        """Takes down an error of a run; says how many it has had in this launch."""
        self._errors.setdefault(run, []).append(told)
        return len(self._errors[run])

    def errors(self, run: str) -> list[str]:
        """What was taken down of a run's errors."""
        return self._errors.get(run, [])

    def memory(self, run: str, what: str) -> None:
        """Takes down that a run takes more than its part while memory is short; nothing: that it has ended well."""
        self._memory[run] = what

    def out_of_memory(self, run: str) -> str:
        """What was taken down of a run's memory: of one that begins again, why it ended."""
        return self._memory.get(run, "")

    def limit(self, shape: str, fit: Fit | None = None) -> Fit | None:
        """What trials of a shape have run out of memory above, taking down another of them if there is one."""
        if fit is not None:
            self._limits[shape] = fit.within(self._limits.get(shape))
        return self._limits.get(shape)

    def pause(self) -> None:
        """Has all runs save themselves and end."""
        self._paused = True


class Contact:
    """A running trial's end of the line to the board. It never waits for an answer."""

    def __init__(self, board: Any, run: str) -> None:
        self._board, self._run, self._node = board, run, ray.get_runtime_context().get_node_id()
        self.word: Word = ray.get(board.word.remote(self._node))
        """What the trial is to do."""
        self.left = self.word is not Word.GO_ON
        """Whether it does that: it ends before it is done."""
        self._answer: Any = None
        self._told = self._saved = time.monotonic()

    def on_step(self, step: Step) -> None:
        """Says how far the trial is, now and then."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self.word, self._answer = ray.get(self._answer), None
        if self._answer is None and time.monotonic() - self._told > SECONDS_BETWEEN_WORDS:
            self._told = time.monotonic()
            self._answer = self._board.step.remote(self._run, self._node, step)

    def checkpoint_due(self) -> bool:
        """Whether the trial is to be saved now."""
        return self.word is not Word.GO_ON or time.monotonic() - self._saved > CHECKPOINT_SECONDS

    def saved(self) -> None:
        """The trial was saved."""
        self._saved = time.monotonic()


def train_gpt2(config: dict[str, Any], job: Job) -> None:
    """One trial. What no retry mends is reported as the trial's end; all else is raised, and Tune starts it again."""
    trial = TrialConfig.recorded(config)
    job = job.of(trial)
    if FOOTPRINT.grown_bytes > GROWN * job.part * machine_memory()[1]:
        raise RestartError(f"its process has grown by {FOOTPRINT.grown_bytes / GIB:.1f} GiB; a fresh one follows")
    contact = Contact(job.board, trial.run_name)
    if eaten := ray.get(job.board.out_of_memory.remote(trial.run_name)):
        tune.report({"reason": f"{eaten}, alone on its machine"} if job.alone else {"memory": eaten})
        return
    if len(errors := ray.get(job.board.errors.remote(trial.run_name))) > job.max_failures:
        tune.report({"reason": errors[-1]})
        return
    with _within_its_part(job, trial.run_name):
        try:
            if not contact.left:
                _train(trial, job, contact)
        except UserError as error:
            tune.report({"reason": str(error)})
        except (peers.DeadRankError, RestartError):
            raise
        except Exception as error:
            if disk_is_full(error):  # not the trial's fault
                tune.report({"paused": Pause.DISK_FULL, "detail": _told(error)})
            elif ray.get(job.board.error.remote(trial.run_name, _told(error))) > job.max_failures:
                tune.report({"reason": _told(error)})
            else:
                raise
    if contact.left and contact.word is Word.MOVE:
        raise RestartError("its machine is about to be taken away; it was saved")
    if contact.left:
        tune.report({"paused": Pause.INTERRUPTED})


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


def _told(error: Exception) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _train(trial: TrialConfig, job: Job, contact: Contact) -> None:
    """Trains a trial to its end, or until it is to pause."""
    if problem := checks.windows_for_all("batch_size", [trial.batch_size], job.ranks):  # a search may come to this
        raise UserError(str(problem))
    source = _source(trial, job)
    kind = precision.resolved(job.precision, job.device)
    corpus, within = job.corpora[trial.dataset, trial.model], partial(_within_its_part, job, trial.run_name)

    def note(error: Exception) -> None:
        ray.get(job.board.error.remote(trial.run_name, _told(error)), timeout=5)

    fit, shape = _fit(trial, source, job, kind), f"{trial.model} at {trial.context_length}"
    with results.newest_verified(job.folder, trial) as checkpoint:
        work = partial(
            finetune,
            trial,
            source=source,
            device=job.device,
            precision=kind,
            fit=fit,
            limit=ray.get(job.board.limit.remote(shape)),
            on_smaller=lambda smaller: ray.get(job.board.limit.remote(shape, smaller)),
            resume_from=checkpoint,
        )
        with Reporter() as reporter, peers.joined(work, corpus, within, job.ranks, job.device, note) as ranks:

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
    return carried.unpack(source, ray.get(packed))


def _report(evaluations: Iterator[Evaluation], reporter: Reporter, contact: Contact) -> None:
    """Hands Tune each evaluation with its checkpoint, which it carries into storage."""
    for evaluation in evaluations:
        if evaluation.diverged:
            reporter.wait()
            tune.report(evaluation.metrics())
            return
        metrics = evaluation.metrics()
        metrics["checkpoint_score"] = metrics.get("val_loss", SCORE_ON_THE_WAY)
        reporter.hand_over(metrics, evaluation.save)
        contact.saved()
        if contact.word is not Word.GO_ON and not evaluation.trial.progress.finished:
            contact.left = True
            return


def _fit(trial: TrialConfig, source: models.ModelSource, job: Job, precision: str) -> Fit:
    """What fits into a rank's share of its device; all that it has of a batch where the model's shape is not known."""
    shape = models.shape(source)
    if shape is None:
        return Fit(-(-trial.batch_size // job.ranks))
    on_gpu = job.device == "cuda"
    available = torch.cuda.mem_get_info()[1] * job.gpus if on_gpu else machine_memory()[1] * job.part
    return Workload(shape, trial, job.device, precision, job.ranks).fit(available)
