"""The search: which trials are suggested, that the same rows give the same ones, and what the study says of them."""

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
from raylm.tuning import search
from raylm.tuning.search import DIVERGED_LOSS, STUDY_FILE, Suggester, representative_trials

SPACE = {
    "learning_rate": tune.loguniform(1e-5, 1e-2),
    "batch_size": tune.choice([4, 8, 16]),
    "warmup_ratio": tune.uniform(0.0, 0.5),
    "evals_per_epoch": tune.randint(2, 10),
    "epochs": 2,
}
SIX = {"batch_size": tune.choice([4, 8, 16]), "optimizer": tune.choice(["adamw", "adafactor"])}
NUMBER, LAG = 25, 4


def sweep(space: Any = SPACE, **named: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": space, "search": "optuna", "num_samples": NUMBER, **named})


def conditional(trial: Any) -> dict[str, Any]:
    """A define-by-run function: one optimizer has a weight decay and the other has none."""
    if trial.suggest_categorical("optimizer", ["adamw", "adafactor"]) == "adamw":
        trial.suggest_float("weight_decay", 0.01, 0.1)
    trial.suggest_float("warmup_ratio", 0.0, 0.5)
    return {"context_length": 64}


def suggestions(made: Sweep, number: int = NUMBER, lag: int = LAG) -> list[TrialConfig | None]:
    """What is suggested where a lower learning rate is better, each having been told what its lag allows."""
    proposals, trials, told = Suggester(made), list[TrialConfig | None](), 0
    for place in range(number):
        rows = [(n, build_row(trial, DONE, [trial.learning_rate])) for n, trial in enumerate(trials) if trial]
        known = max(place - lag + 1, 0)
        trials.append(proposals(rows[told:known]))
        told = known
    return trials


def study_of(proposals: Suggester, folder: Path) -> list[FrozenTrial]:
    """The trials of the study, as optuna-dashboard would read them."""
    proposals.write_study(Folder(folder))
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
    trials: list[FrozenTrial] = optuna.load_study(study_name="s", storage=storage).trials
    return trials


# ---- the same rows, the same suggestions --------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["optuna", "random"])
def test_the_same_seed_gives_the_same_trials_and_another_seed_others(by: str) -> None:
    one, same, other = (suggestions(sweep(search=by, search_seed=seed)) for seed in (1, 1, 2))
    assert one == same and None not in one
    assert not {trial.id for trial in one if trial} & {trial.id for trial in other if trial}


def test_trials_are_within_the_space() -> None:
    for trial in suggestions(sweep()):
        assert trial is not None
        assert 1e-5 <= trial.learning_rate <= 1e-2 and trial.batch_size in (4, 8, 16)
        assert 0 <= trial.warmup_ratio <= 0.5 and 2 <= trial.evals_per_epoch <= 9
        assert trial.epochs == 2


def test_suggestions_follow_from_the_losses() -> None:
    proposals, blind = Suggester(sweep()), Suggester(sweep())
    trials, unknowing = [proposals([])], [blind([])]
    while len(trials) < NUMBER:
        last = trials[-1]
        assert last is not None
        trials.append(proposals([(len(trials) - 1, build_row(last, DONE, [last.learning_rate]))]))
        unknowing.append(blind([]))
    assert trials[:10] == unknowing[:10] and trials[12:] != unknowing[12:]
    late = sorted(trial.learning_rate for trial in trials[12:] if trial)
    assert late[len(late) // 2] < 1e-3 / 2  # a middle one; of the space it is 3e-4 and of random trials no less


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(sweep(), id="optuna"),
        pytest.param(sweep(search="random", search_seed=3), id="random"),
        pytest.param(sweep(conditional), id="define-by-run"),
        pytest.param(sweep(points_to_evaluate=[{"batch_size": 4}, {"learning_rate": 1e-3}]), id="points"),
    ],
)
@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("ends", [0, 2, 9, 17, 24])
def test_a_search_that_went_down_goes_on_with_the_trials_that_it_would_have_had(
    made: Sweep, asha: bool, ends: int
) -> None:
    undisturbed = SimulatedStorage()
    undisturbed.run_launch(undisturbed.build_queue(Suggester(made), NUMBER, LAG, asha=asha), max_concurrent=1)
    assert len({trial.id for trial in undisturbed.dispatched}) == NUMBER
    assert len({row.status for row in undisturbed.rows.values()}) >= 3

    storage = SimulatedStorage()
    storage.run_launch(storage.build_queue(Suggester(made), NUMBER, LAG, asha=asha), seed=ends, max_finished=ends)
    lineup = storage.build_queue(Suggester(made), NUMBER, LAG, asha=asha)
    storage.run_launch(lineup, seed=ends + 1, max_concurrent=2)
    assert lineup.trials == undisturbed.dispatched and storage.reported_outcomes == undisturbed.reported_outcomes


@pytest.mark.parametrize(
    "by",
    ["optuna", optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=1), OptunaSearch(seed=1)],
    ids=lambda by: by if isinstance(by, str) else type(by).__name__,
)
def test_a_sweep_can_be_run_twice_in_a_process(by: Any) -> None:
    made = sweep(search=by)
    assert suggestions(made, 5) == suggestions(made, 5)


# ---- each trial once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["optuna", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_a_space_of_six_points_has_six_trials_and_then_none(by: str, seed: int) -> None:
    found = suggestions(sweep(SIX, num_samples=30, search=by, search_seed=seed), 8)
    assert len({trial.id for trial in found[:6] if trial}) == 6
    assert found[6:] == [None, None]


@pytest.mark.parametrize("by", ["optuna", "random"])
@pytest.mark.parametrize(
    "space",
    [
        {"batch_size": tune.randint(1, 31)},
        {"batch_size": tune.qrandint(2, 60, 2)},
        {"warmup_ratio": tune.quniform(0.1, 1.0, 0.1), "batch_size": tune.choice([4, 8, 16])},
    ],
)
def test_a_space_of_thirty_points_in_ranges_has_as_many_trials_as_asked_for(by: str, space: Any) -> None:
    found = suggestions(sweep(space, search=by))
    assert None not in found and len({trial.id for trial in found if trial}) == NUMBER


def test_repetitions_tell_the_sampler_nothing(tmp_path: Path) -> None:
    proposals = Suggester(sweep({"batch_size": tune.choice([4, 8])}))
    while proposals([]):
        pass
    states = [trial.state for trial in study_of(proposals, tmp_path)]
    assert states.count(TrialState.RUNNING) == 2 and set(states[2:]) <= {TrialState.RUNNING, TrialState.FAIL}


def test_a_good_point_that_is_named_again_and_again_does_not_end_a_search() -> None:
    def function(trial: Any) -> None:
        if trial.suggest_categorical("optimizer", ["adamw", "adafactor"]) == "adamw":
            trial.suggest_float("learning_rate", 1e-4, 1e-2)  # the other has one point, and it is the best

    found = suggestions(sweep(function))
    assert None not in found and len({trial.id for trial in found if trial}) == NUMBER


class Stubborn(Searcher):
    """Suggests the same point for ever."""

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"batch_size": 4, "optimizer": "adamw"}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


def test_a_searcher_of_ray_that_repeats_itself_is_through() -> None:
    found = suggestions(sweep(SIX, search=Stubborn()), 2)
    assert found == [TrialConfig(batch_size=4, optimizer="adamw"), None]


# ---- what searches ------------------------------------------------------------------------------------------------


def test_a_sampler_of_optuna_is_taken_as_it_is() -> None:
    one, same, other = (
        suggestions(sweep(search=optuna.samplers.RandomSampler(seed=seed), search_seed=search_seed), 5)
        for seed, search_seed in ((1, 0), (1, 7), (2, 0))
    )
    assert one == same != other
    assert one == suggestions(sweep(search="random", search_seed=1), 5)


def test_a_searcher_of_ray_tune_gets_the_space() -> None:
    trials = suggestions(sweep(search=OptunaSearch(seed=1)), 12)
    assert len({trial.id for trial in trials if trial}) == 12
    assert all(trial and 1e-5 <= trial.learning_rate <= 1e-2 and trial.epochs == 2 for trial in trials)
    assert trials == suggestions(sweep(search=OptunaSearch(seed=1)), 12)


def test_a_searcher_of_ray_tune_keeps_no_study_of_ours(tmp_path: Path) -> None:
    proposals = Suggester(sweep(search=OptunaSearch(seed=1)))
    proposals([])
    proposals.write_study(Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("space", "named"),
    [
        pytest.param(SPACE, {"search": OptunaSearch(SPACE, metric="x", mode="min")}, id="own space"),
        pytest.param(conditional, {"search": OptunaSearch()}, id="a function"),
        pytest.param(SPACE, {"search": OptunaSearch(), "points_to_evaluate": [{"batch_size": 4}]}, id="points"),
        pytest.param(SPACE, {"search": ConcurrencyLimiter(OptunaSearch(), max_concurrent=2)}, id="waits"),
    ],
)
def test_what_a_searcher_of_ray_tune_cannot_do_is_refused(space: Any, named: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"search|points_to_evaluate|space: a function requires"):
        Suggester(sweep(space, **named))


@pytest.mark.parametrize(
    "value", [tune.quniform(0.1, 0.9, 0.1), tune.qrandint(2, 8, 2), tune.lograndint(2, 64), tune.loguniform(0.1, 1)]
)
def test_the_other_distributions_of_tune(value: Any) -> None:
    for trial in suggestions(sweep({"max_grad_norm": value, "seed": tune.randint(0, 1000)}), 12):
        assert trial is not None
        assert value.lower <= trial.max_grad_norm <= value.upper
        if isinstance(value.lower, int) or value.lower + value.upper == 1:
            tenths = trial.max_grad_norm * (10 if value.upper < 1 else 1)
            assert tenths == pytest.approx(round(tenths))


# ---- define-by-run functions --------------------------------------------------------------------------------------


def test_a_define_by_run_function_names_fields_or_gives_them_or_both() -> None:
    trials = [trial for trial in suggestions(sweep(conditional)) if trial]
    assert {trial.optimizer for trial in trials} == {"adamw", "adafactor"}
    for trial in trials:
        assert trial.context_length == 64
        assert 0.01 <= trial.weight_decay <= 0.1 if trial.optimizer == "adamw" else trial.weight_decay == 0
    assert len({trial.id for trial in trials}) == len(trials)


def test_a_field_that_is_set_for_all_trials_goes_before_a_function() -> None:
    made = sweep(conditional).override({"context_length": 32, "weight_decay": 0.5})
    found = [trial for trial in suggestions(made, 8) if trial]
    assert {(trial.context_length, trial.weight_decay) for trial in found} == {(32, 0.5)}
    assert {(trial.context_length, trial.weight_decay) for trial in representative_trials(made)} == {(32, 0.5)}


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
def test_a_function_that_does_not_work_is_found_before_anything_starts(function: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        representative_trials(sweep(function))
    assert words in str(caught.value)


# ---- points to begin with -----------------------------------------------------------------------------------------


def test_points_come_first_and_what_they_leave_open_is_searched() -> None:
    points: list[dict[str, Any]] = [
        {"learning_rate": 1e-3, "batch_size": 8, "warmup_ratio": 0.25, "evals_per_epoch": 2},
        {"batch_size": 16, "epochs": 2},
        {},
        {"warmup_ratio": 0.5},
    ]
    trials = suggestions(sweep(points_to_evaluate=points), 6)
    assert trials[0] == TrialConfig(**points[0], epochs=2)
    assert [trial and trial.batch_size for trial in trials[1:2]] == [16]
    assert trials[3] and trials[3].warmup_ratio == 0.5
    assert len({trial.id for trial in trials if trial}) == 6
    assert trials[1:] != suggestions(sweep(), 6)[1:]


def test_a_point_that_is_named_twice_is_run_once() -> None:
    points = [{"batch_size": 8, "optimizer": "adamw"}] * 3 + [{"batch_size": 4, "optimizer": "adamw"}]
    found = suggestions(sweep(SIX, points_to_evaluate=points), 2)
    assert [(trial.batch_size, trial.optimizer) for trial in found if trial] == [(8, "adamw"), (4, "adamw")]


def test_points_of_a_function() -> None:
    points = [{"optimizer": "adamw", "weight_decay": 0.05}, {"optimizer": "adafactor"}]
    found = suggestions(sweep(conditional, points_to_evaluate=points), 2)
    assert [(trial.optimizer, trial.weight_decay) for trial in found if trial] == [("adamw", 0.05), ("adafactor", 0)]


# ---- what is told, and the study ----------------------------------------------------------------------------------


def ended(trial: TrialConfig | None, status: str, losses: Sequence[float] = ()) -> Row:
    assert trial is not None
    return build_row(trial, status, losses)


def test_how_trials_ended_is_in_the_study(tmp_path: Path) -> None:
    proposals = Suggester(sweep())
    trials = [proposals([]) for _ in range(7)]
    proposals.report_outcomes(
        [
            (0, ended(trials[0], DONE, [3.0, 2.0, 2.5])),
            (1, ended(trials[1], DIVERGED, [2.5])),
            (2, ended(trials[2], DIVERGED)),
            (3, ended(trials[3], STOPPED, [3.5, 3.25])),
            (4, ended(trials[4], FAILED, [1.0])),
            (5, ended(trials[5], FAILED)),
        ]
    )
    study = study_of(proposals, tmp_path / "optuna")
    complete, pruned, fail = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    assert [one.state for one in study] == [complete, complete, complete, pruned, fail, fail, TrialState.RUNNING]
    assert [one.value for one in study[:3]] == [2.0, DIVERGED_LOSS, DIVERGED_LOSS]  # the best epoch's
    assert study[3].intermediate_values == {2: 3.25}
    assert [one.params["learning_rate"] for one in study] == [trial and trial.learning_rate for trial in trials]


def test_a_diverged_trial_is_worse_than_any_other() -> None:
    assert DIVERGED_LOSS > 100  # the loss of a wrong word is some dozens of nats


def test_the_study_is_written_anew_each_time(tmp_path: Path) -> None:
    proposals = Suggester(sweep(points_to_evaluate=[{"batch_size": 4}]))
    for number in (1, 2, 3):
        proposals([])
        started = [one for one in study_of(proposals, tmp_path) if one.state == TrialState.RUNNING]
        assert len(started) == number
        left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
        assert [name for name in left if not name.endswith(".lock")] == [STUDY_FILE]


# ---- what a search may need ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "needs"),
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
def test_each_model_dataset_and_the_longest_context_are_stood_for(space: Any, needs: set[tuple[Any, ...]]) -> None:
    found = representative_trials(sweep(space))
    assert {(one.dataset, one.model, one.context_length, one.pretrained) for one in found} == needs
    assert len(found) == len(needs)


@pytest.mark.parametrize(
    ("value", "fewest"),
    [
        (tune.choice([5000, 3000]), 3000),
        (tune.randint(2000, 9000), 2000),
        (tune.choice([5000, None]), 5000),
        (tune.choice([None, 5000]), 5000),
        (tune.choice([None]), None),
    ],
)
def test_the_fewest_tokens_are_stood_for(value: Any, fewest: int | None) -> None:
    assert [one.max_train_tokens for one in representative_trials(sweep({"max_train_tokens": value}))] == [fewest]


def test_looking_at_a_function_does_not_change_what_is_suggested() -> None:
    made = sweep(conditional)
    before = suggestions(copy.copy(made), 8)
    representative_trials(made)
    assert suggestions(made, 8) == before


def test_the_metric_is_the_one_that_compares_between_tokenizers() -> None:
    assert search.METRIC == "adj_val_loss"
