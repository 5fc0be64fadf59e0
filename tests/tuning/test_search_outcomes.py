"""Outcomes of a search: by which loss trials are compared, and the rank of those without one that compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from simulated import SimulatedStorage, build_row

from raylm.config.dataset import DatasetSpec
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.measures import ADJ_VAL_LOSS, NATS_PER_BYTE, VAL_LOSS, Measure, choose_measure, restore_measure
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, SweepRows
from raylm.results.storage import Folder
from raylm.results.sweep_record import DataRecord, LaunchRecord, Rules, SweepRecord
from raylm.tuning.launch import _find_objective
from raylm.tuning.prepare import PreparedInputs
from raylm.tuning.search import Suggester
from raylm.tuning.searcher import default_metric

SPACE = {"learning_rate": tune.loguniform(1e-5, 1e-1), "warmup_ratio": tune.uniform(0.0, 0.5), "evals_per_epoch": 9}
CHINESE_LOSS = 4e5
"""Adj val loss of a text with few words: nats per line."""
FINE, LOSSY = (DatasetSpec("pydocs"), "gpt2"), (DatasetSpec("pydocs"), "owner/lossy")
DATA = {
    FINE: DataRecord("pydocs", "gpt2", validation_tokens=100, validation_bytes=400, fingerprint="a", lossless=True),
    LOSSY: DataRecord(
        "pydocs", "owner/lossy", validation_tokens=50, validation_bytes=400, fingerprint="b", lossless=False
    ),
}


def build_sweep(**options: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": SPACE, "search": "optuna", "num_samples": 40, **options})


def search_lowest_rate(sweep: Sweep, scale: float, number: int = 40, first: str = "") -> list[TrialConfig]:
    """Return the suggestions of a search in which a lower learning rate is better, and one above 1e-2 diverges.

    Args:
        scale: adj val loss of the best trials.
        first: status of the first trial; empty: as of the others.
    """
    suggester, trials, outcomes = Suggester(sweep), list[TrialConfig](), list[Any]()
    for index in range(number):
        trial = suggester(outcomes)
        assert trial is not None
        trials.append(trial)
        loss = scale * (2 + math.log10(trial.learning_rate) / 5)
        status = first if first and index == 0 else DIVERGED if trial.learning_rate > 1e-2 else DONE
        outcomes = [(index, build_row(trial, status, [loss] if status == DONE else []))]
    return trials


@dataclass
class RecordingSearcher(Searcher):
    """Searcher that is not Optuna's: it suggests rising batch sizes and records what it is told."""

    losses: list[float] = field(default_factory=list)
    errors: int = 0
    suggested: int = 0

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        self._metric = metric
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self.suggested += 1
        return {"batch_size": self.suggested}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.errors += error
        self.losses += [result[self._metric]] if result else []


def ranked(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the numbers of trials in the order of Optuna's TPE, best first."""
    study = optuna.create_study()
    split = optuna.samplers._tpe.sampler._split_trials
    order: list[int] = []
    for size in range(1, len(trials) + 1):
        order += [trial.number for trial in split(study, list(trials), size)[0] if trial.number not in order]
    return order


# ---- diverged trials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", DIVERGED])
@pytest.mark.parametrize("sampler", ["optuna", optuna.samplers.TPESampler(seed=3)], ids=["default", "own"])
def test_search_avoids_trials_that_diverge_whatever_the_unit(sampler: Any, first: str) -> None:
    per_line = search_lowest_rate(build_sweep(search=sampler), CHINESE_LOSS, first=first)
    assert sum(trial.learning_rate > 1e-2 for trial in per_line[20:]) <= 2
    assert per_line == search_lowest_rate(build_sweep(search=sampler), 4.0, first=first), "only the order counts"
    assert per_line == search_lowest_rate(build_sweep(search=sampler), CHINESE_LOSS, first=first)


@pytest.mark.parametrize("scheduler", [None, "asha"])
def test_diverged_trial_ranks_below_every_finished_one(scheduler: str | None) -> None:
    suggester = Suggester(build_sweep(scheduler=scheduler))
    trials = [suggester([]) for _ in range(5)]
    statuses = [(DIVERGED, []), (DONE, [4e5]), (STOPPED, [9e9]), (DIVERGED, [0.1]), (DONE, [3e300])]
    for index, (trial, (status, losses)) in enumerate(zip(trials, statuses, strict=True)):
        assert trial is not None
        if status != STOPPED or scheduler:
            suggester.report_outcomes([(index, build_row(trial, status, losses))])
    assert suggester._study is not None
    finished = [trial for trial in suggester._study.trials if trial.state != TrialState.RUNNING]
    assert ranked(finished) == ([1, 4, 2, 0, 3] if scheduler else [1, 4, 0, 3])


def test_other_searchers_of_ray_get_finite_outcomes_that_rise_with_the_loss() -> None:
    space, searcher = {"batch_size": tune.randint(1, 100)}, RecordingSearcher()
    suggester = Suggester(Sweep(name="s", space=space, search=searcher, num_samples=9))
    trials = [suggester([]) for _ in range(6)]
    outcomes = [(DIVERGED, []), (DONE, [3.5]), (DONE, [4e5]), (DIVERGED, [1.0]), (FAILED, []), (DONE, [3.0])]
    for index, (trial, (status, losses)) in enumerate(zip(trials, outcomes, strict=True)):
        assert trial is not None
        suggester.report_outcomes([(index, build_row(trial, status, losses))])
    copied = suggester._searcher
    assert isinstance(copied, RecordingSearcher) and copied.errors == 1
    first, done, high, diverged, best = copied.losses
    assert best < done < high < first == diverged == 1.0


# ---- measures -----------------------------------------------------------------------------------------------------


def test_search_is_not_decided_by_a_tokenizer_that_loses_text() -> None:
    measure = choose_measure([FINE, LOSSY], DATA)
    assert (measure.name, measure.excluded) == (VAL_LOSS, frozenset([LOSSY]))
    suggester = Suggester(
        build_sweep(space={"model": tune.choice(["gpt2", "owner/lossy"]), "seed": tune.randint(0, 9**9)}), measure
    )
    for index in range(30):
        trial = suggester([])
        assert trial is not None
        suggester.report_outcomes([(index, build_row(trial, DONE, [0.5 if trial.model == "owner/lossy" else 4.0]))])
    late = [suggester([]) for _ in range(10)]
    assert sum(trial is not None and trial.model == "gpt2" for trial in late) >= 7
    assert suggester._study is not None and suggester._study.best_value == 4.0


def test_search_compares_tokenizers_by_bytes() -> None:
    other = (DatasetSpec("pydocs"), "gpt2-nano")
    data = {
        **DATA,
        other: DataRecord("pydocs", "gpt2-nano", validation_tokens=200, validation_bytes=400, fingerprint="c"),
    }
    measure = choose_measure([FINE, other], data)
    assert measure.name == NATS_PER_BYTE and measure.reason == "as tokenizers differ"
    suggester = Suggester(
        build_sweep(space={"model": tune.choice(["gpt2", "gpt2-nano"]), "seed": tune.randint(0, 99)}), measure
    )
    trial = suggester([])
    assert trial is not None
    suggester.report_outcomes([(0, build_row(trial, DONE, [3.0]))])
    assert suggester._study is not None
    assert suggester._study.best_value == 3.0 * (0.25 if trial.model == "gpt2" else 0.5)


def test_scheduler_of_ray_compares_by_the_measure_unless_it_has_a_metric() -> None:
    scheduler = AsyncHyperBandScheduler()
    assert default_metric(scheduler, choose_measure([FINE], DATA)) == {"metric": "val_loss", "mode": "min"}
    assert default_metric(scheduler, Measure(NATS_PER_BYTE))["metric"] == "nats_per_byte"
    assert default_metric(scheduler, Measure())["metric"] == "adj_val_loss"
    assert default_metric(AsyncHyperBandScheduler(metric="train_loss", mode="min"), Measure()) == {}


def test_launch_keeps_to_the_objective_of_earlier_ones(corpus: Corpus) -> None:
    trial, storage = TrialConfig(), Folder(Path("/nowhere"))
    prepared = PreparedInputs({trial.corpus_key: corpus}, {}, {})

    def find(**fields: Any) -> tuple[str, Rules]:
        record = SweepRecord("s", [], "optuna", **fields)
        measure, rules = _find_objective(build_sweep(), prepared, SweepRows(storage, [], record))
        return measure.name, rules

    assert find() == (VAL_LOSS, Rules.LATEST)
    assert find(launches=[LaunchRecord(1)]) == (ADJ_VAL_LOSS, Rules.BEFORE_MEASURES)
    for name in (VAL_LOSS, NATS_PER_BYTE, ADJ_VAL_LOSS):
        for rules in (Rules.MEASURES, Rules.LATEST):
            assert find(launches=[LaunchRecord(1)], objective=name, rules=rules) == (name, rules)


def test_resumed_search_keeps_the_measure_of_its_first_launch() -> None:
    assert restore_measure(ADJ_VAL_LOSS, [FINE], DATA).name == ADJ_VAL_LOSS
    per_byte = restore_measure(NATS_PER_BYTE, [FINE], DATA)
    assert per_byte.name == NATS_PER_BYTE and per_byte.factors[FINE] == 0.25


@pytest.mark.parametrize("max_finished", [0, 3, 9])
def test_resumed_search_per_byte_suggests_the_trials_of_an_uninterrupted_one(max_finished: int) -> None:
    measure = Measure(NATS_PER_BYTE, "", {TrialConfig().corpus_key: 0.3})
    sweep, number, delay = build_sweep(scheduler="asha"), 16, 3

    def run(storage: SimulatedStorage, **options: Any) -> list[TrialConfig]:
        queue = storage.build_queue(Suggester(sweep, measure), number, delay, asha=True, measure=measure)
        storage.run_launch(queue, **options)
        return queue.trials

    expected = run(SimulatedStorage())
    storage = SimulatedStorage()
    run(storage, seed=1, max_finished=max_finished)
    assert run(storage, seed=2, max_concurrent=2) == expected
    assert {row.status for row in storage.rows.values()} >= {DONE, STOPPED}
