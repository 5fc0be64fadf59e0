"""Replay searches with early stopping on recorded grids: share of the grid's tokens, and loss above the grid's best.

    python bench/search_replay.py --curves FOLDER [--grids rates dropout] [--seeds 50] [--samples 36]

Each grid is trained once, with an evaluation after each ninth of the epoch, and written to FOLDER/GRID.json; a second
command trains only what is missing. A search is then replayed: a trial's losses are the recorded ones. Compared are
raylm's search (also by the rules before numeric choices were ordered), Ray Tune's AsyncHyperBandScheduler (ASHA) with
its OptunaSearch, called as Tune calls them for two concurrent trials, and whole trials drawn at random.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from raylm import Sweep, TrialConfig
from raylm.data.preparation import prepare
from raylm.results.measures import VAL_LOSS, Measure
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, PENDING, Row, SavedCheckpoint
from raylm.results.sweep_record import Rules
from raylm.training import models
from raylm.training.options import ExecutionOptions
from raylm.training.train import finetune
from raylm.tuning.search import Suggester
from raylm.tuning.trial_queue import TrialQueue

MAX_TRAIN_TOKENS, NUM_EVALUATIONS = 40_000, 9
FIXED = {"max_train_tokens": MAX_TRAIN_TOKENS, "evals_per_epoch": NUM_EVALUATIONS}
GRIDS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "rates": (
        {"dropout": 0.0},
        {
            "learning_rate": [round(1e-5 * 10 ** (step / 4), 8) for step in range(12)],
            "batch_size": [4, 8, 16],
            "context_length": [64, 128],
        },
    ),
    "dropout": (
        {"learning_rate": 1e-3},
        {"dropout": [0.0, 0.05, 0.1, 0.15, 0.2, 0.3], "context_length": [32, 64, 128], "batch_size": [4, 8, 16]},
    ),
}
"""Fixed fields and choices of each grid."""
CONCURRENT, DELAY = 2, 4
"""Trials at a time, and the delay of raylm's queue for that number."""
GOAL_SHARE, GOAL_NATS = 0.25, 0.02


@dataclass
class Curves:
    """Recorded evaluations of a grid's trials."""

    fixed: dict[str, Any]
    choices: dict[str, list[Any]]
    evaluations: dict[str, list[EvalMetrics]] = field(default_factory=dict)
    """Evaluations by the trial's id."""
    diverged: set[str] = field(default_factory=set)
    """Ids of trials that diverged."""

    def trials(self) -> list[TrialConfig]:
        """Return all trials of the grid."""
        points = itertools.product(*self.choices.values())
        return [self.build_trial(dict(zip(self.choices, point, strict=True))) for point in points]

    def build_trial(self, point: dict[str, Any]) -> TrialConfig:
        """Return the trial with these choices."""
        return TrialConfig(**FIXED, **self.fixed, **point)

    def final_loss(self, trial: TrialConfig) -> float:
        """Return the lowest val loss of a trial, infinite if it diverged."""
        if trial.id in self.diverged:
            return float("inf")
        return min(metrics.val_loss for metrics in self.evaluations[trial.id])

    def count_tokens(self) -> int:
        """Return the training tokens of the grid."""
        return sum(evaluations[-1].tokens_seen for evaluations in self.evaluations.values() if evaluations)

    def build_row(self, trial: TrialConfig, number: int) -> Row:
        """Return a trial's row after a number of evaluations."""
        progress = Progress(NUM_EVALUATIONS, 1, evaluations=self.evaluations[trial.id][:number])
        is_last = number >= len(self.evaluations[trial.id])
        status = (DIVERGED if trial.id in self.diverged else DONE) if is_last else INTERRUPTED
        return Row(trial, status, "", SavedCheckpoint("", progress), None)


@dataclass
class Outcome:
    """Result of one search."""

    num_tokens: int = 0
    loss: float = float("inf")
    num_trials: int = 0
    num_stopped: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    """Tokens and lowest loss so far at the end of each trial."""

    def add(self, num_tokens: int, loss: float | None) -> None:
        """Add the end of a trial; its loss is None if it was stopped early."""
        self.num_tokens += num_tokens
        self.num_stopped += loss is None
        self.loss = self.loss if loss is None else min(self.loss, loss)
        self.history.append((self.num_tokens, self.loss))

    def loss_after(self, max_tokens: float) -> float:
        """Return the lowest loss within a number of tokens."""
        return min((loss for num_tokens, loss in self.history if num_tokens <= max_tokens), default=float("inf"))


# ---- recording ----------------------------------------------------------------------------------------------------


def record(name: str, folder: Path, precision: str) -> Curves:
    """Return a grid's curves; train the trials that are not recorded yet."""
    path, curves = folder / f"{name}.json", Curves(*GRIDS[name])
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for number, trial in enumerate(curves.trials(), start=1):
        if trial.id not in content:
            content[trial.id] = train(trial, precision)
            path.write_text(json.dumps(content), encoding="utf-8")
            print(f"{name}: trained {number} of {len(curves.trials())}", flush=True)
        curves.evaluations[trial.id] = [EvalMetrics(*values) for values in content[trial.id]["evaluations"]]
        curves.diverged |= {trial.id} if content[trial.id]["diverged"] else set()
    return curves


def train(trial: TrialConfig, precision: str) -> dict[str, Any]:
    """Train a trial by one thread and return its evaluations."""
    torch.set_num_threads(1)
    corpus = prepare(trial.dataset_spec, None, trial.model)
    source = models.resolve_model(trial.model, pretrained=trial.pretrained)
    *_, last = finetune(trial, corpus, source, options=ExecutionOptions(precision=precision))
    names = ("epoch", "step", "tokens_seen", "train_loss", "val_loss", "adj_val_loss")
    evaluations = [[getattr(metrics, name) for name in names] for metrics in last.trainer.progress.evaluations]
    return {"diverged": last.diverged, "evaluations": evaluations}


# ---- replays ------------------------------------------------------------------------------------------------------


class PendingRows:
    """Rows of trials that have not run."""

    def load_row(self, trial: TrialConfig) -> Row:
        """Return the row of a trial that has not run."""
        return Row(trial, PENDING, "", None, None)

    def record_stop(self, trial: TrialConfig, reason: str) -> None:
        """Raise: no trial has run that could have been stopped."""
        raise AssertionError(trial)


def replay_raylm(curves: Curves, samples: int, seed: int, rules: Rules) -> Outcome:
    """Replay a search of raylm with `scheduler="asha"`."""
    space = {**FIXED, **curves.fixed, **{name: tune.choice(values) for name, values in curves.choices.items()}}
    sweep = Sweep(name="s", space=space, search="optuna", num_samples=samples, search_seed=seed, scheduler="asha")
    measure, outcome = Measure(VAL_LOSS), Outcome()
    queue = TrialQueue(
        Suggester(sweep, measure, rules=rules),
        PendingRows(),
        max_trials=samples,
        delay=DELAY,
        count_epoch_tokens=lambda trial: MAX_TRAIN_TOKENS,
        measure=measure,
        any_context=rules >= Rules.ONE_BEST,
    )
    while (trial := queue.next_trial()) is not None:
        rows = [curves.build_row(trial, number) for number in range(1, len(curves.evaluations[trial.id]) + 1)]
        row = next((row for row in rows if queue.find_stop_reason(trial, row)), rows[-1])
        is_stopped = row is not rows[-1] or bool(queue.find_stop_reason(trial, row))
        queue.mark_finished(row.truncate(row.evaluations[-1]) if is_stopped else row)
        outcome.num_trials += 1
        outcome.add(row.evaluations[-1].tokens_seen, None if is_stopped else curves.final_loss(trial))
    return outcome


@dataclass
class TuneTrial:
    """Trial as Tune's schedulers see it."""

    trial_id: str


def replay_ray(curves: Curves, samples: int, seed: int) -> Outcome:
    """Replay Ray Tune's ASHA, grace period a ninth of the epoch, and OptunaSearch with their defaults."""
    scheduler = AsyncHyperBandScheduler(
        metric="loss", mode="min", max_t=NUM_EVALUATIONS, grace_period=1, reduction_factor=3
    )
    searcher, outcome = OptunaSearch(metric="loss", mode="min", seed=seed), Outcome()
    searcher.set_search_properties("loss", "min", {n: tune.choice(values) for n, values in curves.choices.items()})
    running: list[tuple[int, str, TrialConfig, int, int]] = []  # next evaluation's time, id, trial, start, number

    def start(now: int) -> None:
        name, outcome.num_trials = str(outcome.num_trials), outcome.num_trials + 1
        trial = curves.build_trial(searcher.suggest(name))
        scheduler.on_trial_add(None, TuneTrial(name))
        heapq.heappush(running, (now + curves.evaluations[trial.id][0].tokens_seen, name, trial, now, 1))

    for _ in range(CONCURRENT):
        start(0)
    while running:
        now, name, trial, started, number = heapq.heappop(running)
        evaluations = curves.evaluations[trial.id]
        result = {"loss": evaluations[number - 1].val_loss, "training_iteration": number}
        searcher.on_trial_result(name, result)
        is_stopped = scheduler.on_trial_result(None, TuneTrial(name), result) == "STOP" and number < len(evaluations)
        if not is_stopped and number < len(evaluations):
            due = started + evaluations[number].tokens_seen
            heapq.heappush(running, (due, name, trial, started, number + 1))
            continue
        scheduler.on_trial_complete(None, TuneTrial(name), result)
        searcher.on_trial_complete(name, result)
        outcome.add(evaluations[number - 1].tokens_seen, None if is_stopped else curves.final_loss(trial))
        if outcome.num_trials < samples:
            start(now)
    return outcome


def replay_random(curves: Curves, seed: int, max_tokens: float) -> Outcome:
    """Replay whole trials in a random order, each once, as long as they fit into a number of tokens."""
    trials, outcome = curves.trials(), Outcome()
    random.Random(seed).shuffle(trials)
    for trial in trials:
        num_tokens = curves.evaluations[trial.id][-1].tokens_seen
        if outcome.num_tokens + num_tokens > max_tokens:
            break
        outcome.num_trials += 1
        outcome.add(num_tokens, curves.final_loss(trial))
    return outcome


# ---- the table ----------------------------------------------------------------------------------------------------


def methods(curves: Curves, samples: int) -> Iterator[tuple[str, Callable[[int], Outcome]]]:
    """Yield (name, replay of a seed) of what is compared."""
    yield "raylm", lambda seed: replay_raylm(curves, samples, seed, Rules.LATEST)
    yield "raylm, earlier rules", lambda seed: replay_raylm(curves, samples, seed, Rules.MEASURES)
    yield "Ray's ASHA and OptunaSearch", lambda seed: replay_ray(curves, samples, seed)
    yield "random, whole trials", lambda seed: replay_random(curves, seed, GOAL_SHARE * curves.count_tokens())


def main() -> None:
    """Train what is not recorded, replay the searches, and print a table for each grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="folder of the recorded curves")
    parser.add_argument("--grids", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--share", type=float, default=0.5, help="trials of a search, relative to the grid's")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    args.curves.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for name in args.grids:
        curves = record(name, args.curves, args.precision)
        total, losses = curves.count_tokens(), sorted(map(curves.final_loss, curves.trials()))
        print(f"\n{name}: {len(losses)} rows, the best {losses[0]:.3f}, the second {losses[1]:.3f}\n")
        print("| search | trials | stopped | tokens, median | most | nats above, mean | at most 0.02 | ... by 25 % |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for label, replay in methods(curves, round(args.share * len(losses))):
            print_line(label, [replay(seed) for seed in range(args.seeds)], total, losses[0])


def print_line(label: str, outcomes: list[Outcome], total: int, best: float) -> None:
    """Print a line of the table.

    Args:
        total: training tokens of the grid.
        best: the grid's lowest loss.
    """
    shares = [outcome.num_tokens / total for outcome in outcomes]
    hits = statistics.mean(outcome.loss <= best + GOAL_NATS for outcome in outcomes)
    early = statistics.mean(outcome.loss_after(GOAL_SHARE * total) <= best + GOAL_NATS for outcome in outcomes)
    trials = statistics.mean(outcome.num_trials for outcome in outcomes)
    stopped = statistics.mean(outcome.num_stopped for outcome in outcomes)
    above = statistics.mean(outcome.loss - best for outcome in outcomes)
    print(f"| {label} | {trials:.0f} | {stopped:.0f} | {statistics.median(shares):.1%} | {max(shares):.1%} ", end="")
    print(f"| {above:.3f} | {hits:.0%} | {early:.0%} |", flush=True)


if __name__ == "__main__":
    main()
