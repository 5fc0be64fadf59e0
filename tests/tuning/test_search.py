"""Search: suggested trials, their reproducibility, and the study that is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch
from simulated import SimulatedStorage, build_row

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, Row
from raylm.results.storage import Folder
from raylm.results.sweep_record import Rules
from raylm.tuning.sampling.points import representative_trials
from raylm.tuning.search import DIVERGED_LOSS, STUDY_FILE, Suggester

SPACE = {
    "learning_rate": tune.loguniform(1e-5, 1e-2),
    "batch_size": tune.choice([4, 8, 16]),
    "warmup_ratio": tune.uniform(0.0, 0.5),
    "evals_per_epoch": tune.randint(2, 10),
    "epochs": 2,
}
SIX_POINTS = {"batch_size": tune.choice([4, 8, 16]), "optimizer": tune.choice(["adamw", "adafactor"])}
NUMBER, DELAY = 25, 4


def build_sweep(space: Any = SPACE, **options: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": space, "search": "optuna", "num_samples": NUMBER, **options})


def conditional_space(trial: Any) -> dict[str, Any]:
    """Define a space in which only one of the optimizers has a weight decay."""
    if trial.suggest_categorical("optimizer", ["adamw", "adafactor"]) == "adamw":
        trial.suggest_float("weight_decay", 0.01, 0.1)
    trial.suggest_float("warmup_ratio", 0.0, 0.5)
    return {"context_length": 64}


def run_search(a_sweep: Sweep, number: int = NUMBER, delay: int = DELAY) -> list[TrialConfig | None]:
    """Return the suggestions of a search in which a lower learning rate is better."""
    suggester, trials, num_reported = Suggester(a_sweep), list[TrialConfig | None](), 0
    for place in range(number):
        rows = [(n, build_row(trial, DONE, [trial.learning_rate])) for n, trial in enumerate(trials) if trial]
        known = max(place - delay + 1, 0)
        trials.append(suggester(rows[num_reported:known]))
        num_reported = known
    return trials


def load_study(suggester: Suggester, folder: Path) -> list[FrozenTrial]:
    """Return the trials of the study as optuna-dashboard reads them."""
    suggester.write_study(Folder(folder))
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
    trials: list[FrozenTrial] = optuna.load_study(study_name="s", storage=storage).trials
    return trials


# ---- reproducibility -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
def test_trials_depend_on_the_seed_only(algorithm: str) -> None:
    one, same, other = (run_search(build_sweep(search=algorithm, search_seed=seed)) for seed in (1, 1, 2))
    assert one == same and None not in one
    assert not {trial.id for trial in one if trial} & {trial.id for trial in other if trial}


def test_trials_are_within_the_space() -> None:
    for trial in run_search(build_sweep()):
        assert trial is not None
        assert 1e-5 <= trial.learning_rate <= 1e-2 and trial.batch_size in (4, 8, 16)
        assert 0 <= trial.warmup_ratio <= 0.5 and 2 <= trial.evals_per_epoch <= 9
        assert trial.epochs == 2


def test_suggestions_depend_on_losses() -> None:
    suggester, uninformed_suggester = Suggester(build_sweep()), Suggester(build_sweep())
    trials, uninformed = [suggester([])], [uninformed_suggester([])]
    while len(trials) < NUMBER:
        last = trials[-1]
        assert last is not None
        trials.append(suggester([(len(trials) - 1, build_row(last, DONE, [last.learning_rate]))]))
        uninformed.append(uninformed_suggester([]))
    assert trials[:6] == uninformed[:6] and trials[12:] != uninformed[12:]
    late = sorted(trial.learning_rate for trial in trials[12:] if trial)
    assert late[len(late) // 2] < 1e-3 / 2  # median; that of the space is 3e-4


@pytest.mark.parametrize(
    "a_sweep",
    [
        pytest.param(build_sweep(), id="optuna"),
        pytest.param(build_sweep(search="random", search_seed=3), id="random"),
        pytest.param(build_sweep(conditional_space), id="define-by-run"),
        pytest.param(build_sweep(points_to_evaluate=[{"batch_size": 4}, {"learning_rate": 1e-3}]), id="points"),
    ],
)
@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("max_finished", [0, 2, 9, 17, 24])
def test_resumed_search_suggests_the_trials_of_an_uninterrupted_one(
    a_sweep: Sweep, asha: bool, max_finished: int
) -> None:
    uninterrupted = SimulatedStorage()
    uninterrupted.run_launch(uninterrupted.build_queue(Suggester(a_sweep), NUMBER, DELAY, asha=asha), max_concurrent=1)
    assert len({trial.id for trial in uninterrupted.dispatched}) == NUMBER
    assert len({row.status for row in uninterrupted.rows.values()}) >= 3

    storage = SimulatedStorage()
    storage.run_launch(
        storage.build_queue(Suggester(a_sweep), NUMBER, DELAY, asha=asha), seed=max_finished, max_finished=max_finished
    )
    queue = storage.build_queue(Suggester(a_sweep), NUMBER, DELAY, asha=asha)
    storage.run_launch(queue, seed=max_finished + 1, max_concurrent=2)
    assert queue.trials == uninterrupted.dispatched and storage.reported_outcomes == uninterrupted.reported_outcomes


@pytest.mark.parametrize(
    "algorithm",
    ["optuna", optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=1), OptunaSearch(seed=1)],
    ids=lambda algorithm: algorithm if isinstance(algorithm, str) else type(algorithm).__name__,
)
def test_sweep_object_can_be_searched_twice(algorithm: Any) -> None:
    a_sweep = build_sweep(search=algorithm)
    assert run_search(a_sweep, 5) == run_search(a_sweep, 5)


# ---- duplicates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_space_of_six_points_gives_six_trials(algorithm: str, seed: int) -> None:
    found = run_search(build_sweep(SIX_POINTS, num_samples=30, search=algorithm, search_seed=seed), 8)
    assert len({trial.id for trial in found[:6] if trial}) == 6
    assert found[6:] == [None, None]


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
@pytest.mark.parametrize(
    "space",
    [
        {"batch_size": tune.randint(1, 31)},
        {"batch_size": tune.qrandint(2, 60, 2)},
        {"warmup_ratio": tune.quniform(0.1, 1.0, 0.1), "batch_size": tune.choice([4, 8, 16])},
    ],
)
def test_space_of_thirty_points_gives_all_requested_trials(algorithm: str, space: Any) -> None:
    found = run_search(build_sweep(space, search=algorithm))
    assert None not in found and len({trial.id for trial in found if trial}) == NUMBER


def test_duplicates_give_the_sampler_no_outcome(tmp_path: Path) -> None:
    suggester = Suggester(build_sweep({"batch_size": tune.choice([4, 8])}))
    while suggester([]):
        pass
    states = [trial.state for trial in load_study(suggester, tmp_path)]
    assert states.count(TrialState.RUNNING) == 2 and set(states[2:]) <= {TrialState.RUNNING, TrialState.FAIL}


def test_repeated_suggestion_of_a_good_point_does_not_end_a_search() -> None:
    def function(trial: Any) -> None:
        if trial.suggest_categorical("optimizer", ["adamw", "adafactor"]) == "adamw":
            trial.suggest_float("learning_rate", 1e-4, 1e-2)  # the other optimizer has one point, the best one

    found = run_search(build_sweep(function))
    assert None not in found and len({trial.id for trial in found if trial}) == NUMBER


class RepeatingSearcher(Searcher):
    """Searcher that always suggests the same point."""

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"batch_size": 4, "optimizer": "adamw"}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


def test_searcher_of_ray_that_repeats_itself_is_exhausted() -> None:
    found = run_search(build_sweep(SIX_POINTS, search=RepeatingSearcher()), 2)
    assert found == [TrialConfig(batch_size=4, optimizer="adamw"), None]


# ---- numeric choices -----------------------------------------------------------------------------------------------

RATES = [round(1e-5 * 10 ** (step / 4), 8) for step in range(12)]


def search_batch_size(rules: Rules, seed: int) -> float:
    """Return the mean distance of trials 10 to 19 from the best of 60 batch sizes."""
    space = {"batch_size": tune.choice([*range(60, 30, -1), *range(1, 31)])}
    suggester = Suggester(build_sweep(space, search_seed=seed), rules=rules)
    distances = []
    for index in range(20):
        trial = suggester([])
        assert trial is not None
        distances.append(abs(trial.batch_size - 42))
        suggester.report_outcomes([(index, build_row(trial, DONE, [distances[-1]]))])
    return sum(distances[10:]) / 10


def test_sampler_knows_which_numbers_to_choose_from_are_close() -> None:
    ordered, unordered = (
        [search_batch_size(rules, seed) for seed in range(4)] for rules in (Rules.LATEST, Rules.MEASURES)
    )
    assert sum(ordered) < 0.7 * sum(unordered)


def test_search_of_earlier_rules_goes_on_with_its_trials() -> None:
    space = {"learning_rate": tune.choice(RATES), "batch_size": tune.choice([4, 8, 16]), "seed": tune.choice([3, 1, 2])}
    suggester = Suggester(build_sweep(space, search_seed=5), rules=Rules.MEASURES)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=5, multivariate=True, group=True))
    distributions = OptunaSearch.convert_search_space(space)
    seen = set[TrialConfig]()
    for index in range(16):
        trial = suggester([])
        while (expected := study.ask(distributions)) and TrialConfig(**expected.params) in seen:
            study.tell(expected, state=TrialState.FAIL)
        assert trial == TrialConfig(**expected.params)
        seen.add(trial)
        suggester.report_outcomes([(index, build_row(trial, DONE, [trial.learning_rate]))])
        study.tell(expected, trial.learning_rate)


def test_study_has_the_values_of_numeric_choices(tmp_path: Path) -> None:
    space = {"batch_size": tune.choice([16, 4, 8]), "optimizer": tune.choice(["adamw", "adafactor"])}
    suggester = Suggester(build_sweep(space, points_to_evaluate=[{"batch_size": 16}]))
    trials = [suggester([]) for _ in range(6)]
    assert trials[0] is not None and trials[0].batch_size == 16 and suggester([]) is None
    suggester.report_outcomes([(0, build_row(trials[0], DONE, [2.0]))])
    suggester.report_outcomes([(1, finished_row(trials[1], STOPPED, [3.0, 3.5]))])
    study = load_study(suggester, tmp_path)
    first, second = study[:2]
    assert (first.params["batch_size"], first.value, first.state) == (16, 2.0, TrialState.COMPLETE)
    assert (second.intermediate_values, second.state) == ({2: 3.5}, TrialState.PRUNED)
    assert {one.params["batch_size"] for one in study} == {4, 8, 16}
    assert first.distributions["batch_size"] == optuna.distributions.CategoricalDistribution([4, 8, 16])


# ---- samplers and searchers ----------------------------------------------------------------------------------------


def test_optuna_sampler_is_used_as_it_is() -> None:
    one, same, other = (
        run_search(build_sweep(search=optuna.samplers.RandomSampler(seed=seed), search_seed=search_seed), 5)
        for seed, search_seed in ((1, 0), (1, 7), (2, 0))
    )
    assert one == same != other
    assert one == run_search(build_sweep(search="random", search_seed=1), 5)


def test_tune_searcher_gets_the_space() -> None:
    trials = run_search(build_sweep(search=OptunaSearch(seed=1)), 12)
    assert len({trial.id for trial in trials if trial}) == 12
    assert all(trial and 1e-5 <= trial.learning_rate <= 1e-2 and trial.epochs == 2 for trial in trials)
    assert trials == run_search(build_sweep(search=OptunaSearch(seed=1)), 12)


def test_tune_searcher_writes_no_study(tmp_path: Path) -> None:
    suggester = Suggester(build_sweep(search=OptunaSearch(seed=1)))
    suggester([])
    suggester.write_study(Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("space", "options"),
    [
        pytest.param(SPACE, {"search": OptunaSearch(SPACE, metric="x", mode="min")}, id="own space"),
        pytest.param(conditional_space, {"search": OptunaSearch()}, id="a function"),
        pytest.param(SPACE, {"search": OptunaSearch(), "points_to_evaluate": [{"batch_size": 4}]}, id="points"),
        pytest.param(SPACE, {"search": ConcurrencyLimiter(OptunaSearch(), max_concurrent=2)}, id="waits"),
    ],
)
def test_unsupported_use_of_a_tune_searcher_is_rejected(space: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"search|points_to_evaluate|space: a function requires"):
        Suggester(build_sweep(space, **options))


@pytest.mark.parametrize(
    "value", [tune.quniform(0.1, 0.9, 0.1), tune.qrandint(2, 8, 2), tune.lograndint(2, 64), tune.loguniform(0.1, 1)]
)
def test_values_respect_quantized_and_log_distributions(value: Any) -> None:
    for trial in run_search(build_sweep({"max_grad_norm": value, "seed": tune.randint(0, 1000)}), 12):
        assert trial is not None
        assert value.lower <= trial.max_grad_norm <= value.upper
        if isinstance(value.lower, int) or value.lower + value.upper == 1:
            tenths = trial.max_grad_norm * (10 if value.upper < 1 else 1)
            assert tenths == pytest.approx(round(tenths))


# ---- define-by-run functions --------------------------------------------------------------------------------------


def test_define_by_run_function_can_suggest_and_return_fields() -> None:
    trials = [trial for trial in run_search(build_sweep(conditional_space)) if trial]
    assert {trial.optimizer for trial in trials} == {"adamw", "adafactor"}
    for trial in trials:
        assert trial.context_length == 64
        assert 0.01 <= trial.weight_decay <= 0.1 if trial.optimizer == "adamw" else trial.weight_decay == 0
    assert len({trial.id for trial in trials}) == len(trials)


def test_override_takes_precedence_over_a_function() -> None:
    a_sweep = build_sweep(conditional_space).override({"context_length": 32, "weight_decay": 0.5})
    found = [trial for trial in run_search(a_sweep, 8) if trial]
    assert {(trial.context_length, trial.weight_decay) for trial in found} == {(32, 0.5)}
    assert {(trial.context_length, trial.weight_decay) for trial in representative_trials(a_sweep)} == {(32, 0.5)}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda trial: {"seed": 1 // 0}, "space: the function raises ZeroDivisionError: integer division or modulo"),
        (lambda trial: {"lr": 1}, "lr"),
        (lambda trial: [1], "space: the function returns [1]; expected a dict of fields"),
        (lambda trial: {"batch_size": trial.suggest_int("batch_size", 0, 3)}, "space(...).batch_size: got 0"),
        (lambda trial: {"context_length": 2048, "model": "gpt2"}, "space(...).context_length: got 2048"),
    ],
)
def test_error_of_a_function_is_raised_before_the_launch(function: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        representative_trials(build_sweep(function))
    assert words in str(caught.value)


# ---- points to evaluate first --------------------------------------------------------------------------------------


def test_points_come_first_and_missing_fields_are_searched() -> None:
    points: list[dict[str, Any]] = [
        {"learning_rate": 1e-3, "batch_size": 8, "warmup_ratio": 0.25, "evals_per_epoch": 2},
        {"batch_size": 16, "epochs": 2},
        {},
        {"warmup_ratio": 0.5},
    ]
    trials = run_search(build_sweep(points_to_evaluate=points), 6)
    assert trials[0] == TrialConfig(**points[0], epochs=2)
    assert [trial and trial.batch_size for trial in trials[1:2]] == [16]
    assert trials[3] and trials[3].warmup_ratio == 0.5
    assert len({trial.id for trial in trials if trial}) == 6
    assert trials[1:] != run_search(build_sweep(), 6)[1:]


def test_duplicate_point_is_run_once() -> None:
    points = [{"batch_size": 8, "optimizer": "adamw"}] * 3 + [{"batch_size": 4, "optimizer": "adamw"}]
    found = run_search(build_sweep(SIX_POINTS, points_to_evaluate=points), 2)
    assert [(trial.batch_size, trial.optimizer) for trial in found if trial] == [(8, "adamw"), (4, "adamw")]


def test_points_work_with_a_function() -> None:
    points = [{"optimizer": "adamw", "weight_decay": 0.05}, {"optimizer": "adafactor"}]
    found = run_search(build_sweep(conditional_space, points_to_evaluate=points), 2)
    assert [(trial.optimizer, trial.weight_decay) for trial in found if trial] == [("adamw", 0.05), ("adafactor", 0)]


# ---- reported outcomes and the study -------------------------------------------------------------------------------


def finished_row(trial: TrialConfig | None, status: str, losses: Sequence[float] = ()) -> Row:
    assert trial is not None
    return build_row(trial, status, losses)


def test_study_has_the_outcomes_of_trials(tmp_path: Path) -> None:
    suggester = Suggester(build_sweep())
    trials = [suggester([]) for _ in range(7)]
    suggester.report_outcomes(
        [
            (0, finished_row(trials[0], DONE, [3.0, 2.0, 2.5])),
            (1, finished_row(trials[1], DIVERGED, [2.5])),
            (2, finished_row(trials[2], DIVERGED)),
            (3, finished_row(trials[3], STOPPED, [3.5, 3.25])),
            (4, finished_row(trials[4], FAILED, [1.0])),
            (5, finished_row(trials[5], FAILED)),
        ]
    )
    study = load_study(suggester, tmp_path / "optuna")
    complete, pruned, fail = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    assert [one.state for one in study] == [complete, complete, complete, pruned, fail, fail, TrialState.RUNNING]
    assert [one.value for one in study[:3]] == [2.0, DIVERGED_LOSS, DIVERGED_LOSS]  # the best epoch's
    assert study[3].intermediate_values == {2: 3.25}
    assert [one.params["learning_rate"] for one in study] == [trial and trial.learning_rate for trial in trials]


def test_study_of_a_version_before_measures_reports_what_it_did(tmp_path: Path) -> None:
    suggester = Suggester(build_sweep(scheduler="asha"), rules=Rules.BEFORE_MEASURES)
    trials = [suggester([]) for _ in range(2)]
    outcomes = [(0, finished_row(trials[0], DONE, [2000.0])), (1, finished_row(trials[1], DIVERGED))]
    suggester.report_outcomes(outcomes)
    assert [one.value for one in load_study(suggester, tmp_path / "optuna")] == [2000.0, 1000.0]


def test_study_is_overwritten_by_each_write(tmp_path: Path) -> None:
    suggester = Suggester(build_sweep(points_to_evaluate=[{"batch_size": 4}]))
    for number in (1, 2, 3):
        suggester([])
        started = [trial for trial in load_study(suggester, tmp_path) if trial.state == TrialState.RUNNING]
        assert len(started) == number
        left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
        assert [name for name in left if not name.endswith(".lock")] == [STUDY_FILE]


# ---- representative trials -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"seed": tune.choice([1, 2]), "epochs": 3}, {("pydocs", "gpt2-nano", 1024, True)}),
        (
            {"model": tune.choice(["gpt2", "gpt2-medium"]), "dataset": tune.choice(["imdb", "wikitext2"])},
            {(data, model, 1024, True) for data in ("imdb", "wikitext2") for model in ("gpt2", "gpt2-medium")},
        ),
        (
            {"model": "gpt2", "context_length": tune.choice([256, 512, 128])},
            {("pydocs", "gpt2", 512, True)},
        ),
        ({"context_length": tune.randint(16, 257)}, {("pydocs", "gpt2-nano", 256, True)}),
        (
            {"model": "gpt2", "pretrained": tune.choice([True, False]), "context_length": 64},
            {("pydocs", "gpt2", 64, True), ("pydocs", "gpt2", 64, False)},
        ),
        (
            lambda trial: {"model": trial.suggest_categorical("model", ["gpt2", "gpt2-xl"]), "context_length": 64},
            {("pydocs", "gpt2", 64, True), ("pydocs", "gpt2-xl", 64, True)},
        ),
    ],
)
def test_representative_trials_cover_models_datasets_and_the_longest_context(
    space: Any, expected: set[tuple[Any, ...]]
) -> None:
    found = representative_trials(build_sweep(space))
    assert {(one.dataset, one.model, one.context_length, one.pretrained) for one in found} == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tune.choice([5000, 3000]), 3000),
        (tune.randint(2000, 9000), 2000),
        (tune.choice([5000, None]), 5000),
        (tune.choice([None, 5000]), 5000),
        (tune.choice([None]), None),
    ],
)
def test_representative_trials_cover_the_fewest_tokens(value: Any, expected: int | None) -> None:
    assert [one.max_train_tokens for one in representative_trials(build_sweep({"max_train_tokens": value}))] == [
        expected
    ]


def test_representative_trials_do_not_change_suggestions() -> None:
    a_sweep = build_sweep(conditional_space)
    before = run_search(copy.copy(a_sweep), 8)
    representative_trials(a_sweep)
    assert run_search(a_sweep, 8) == before
