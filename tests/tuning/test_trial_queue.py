"""Trial queue: a trial depends on the results of those at least `delay` places before it, and on no others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from simulated import SimulatedStorage, build_row, simulate_losses

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Row
from raylm.tuning.trial_queue import SuggestFn, TrialQueue

TOTAL, DELAY = 24, 4


def suggest_from_outcomes(num_trials: int = 1_000_000) -> SuggestFn:
    """Return a function that suggests trials which depend on all outcomes reported to it."""
    reported: list[str] = []

    def suggest(outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
        nonlocal num_trials
        num_trials -= 1
        reported.extend(f"{place} {row.config.id} {row.status} {row.metrics}" for place, row in outcomes)
        return TrialConfig(seed=zlib.crc32(f"{num_trials} {reported}".encode())) if num_trials >= 0 else None

    return suggest


def suggest_seeds(*numbers: int) -> SuggestFn:
    """Return a function that suggests trials with these seeds, whatever the outcomes."""
    trials = iter([TrialConfig(seed=number) for number in numbers])
    return lambda outcomes: next(trials, None)


def run_uninterrupted(asha: bool = False) -> tuple[SimulatedStorage, TrialQueue]:
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_from_outcomes(), TOTAL, DELAY, asha=asha)
    storage.run_launch(queue, max_concurrent=1)
    return storage, queue


# ---- dependence on outcomes -----------------------------------------------------------------------------------------


def test_simulation_covers_every_final_status() -> None:
    assert {row.status for row in run_uninterrupted(asha=True)[0].rows.values()} == {DONE, STOPPED, DIVERGED, FAILED}


@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("max_concurrent", [1, 2, 4, 100])
@pytest.mark.parametrize("order", range(4))
def test_trials_and_reported_outcomes_do_not_depend_on_the_order_of_ends(
    order: int, max_concurrent: int, asha: bool
) -> None:
    expected, _ = run_uninterrupted(asha)
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_from_outcomes(), TOTAL, DELAY, asha=asha)
    storage.run_launch(queue, seed=order, max_concurrent=max_concurrent)
    assert storage.dispatched == expected.dispatched == queue.trials and len(queue.trials) == TOTAL
    assert storage.reported_outcomes == expected.reported_outcomes
    assert {run: row.status for run, row in storage.rows.items()} == (
        {run: row.status for run, row in expected.rows.items()}
    )


def test_suggestion_gets_the_outcomes_of_trials_at_least_delay_places_before_it() -> None:
    storage, queue = run_uninterrupted()
    indices: list[int] = []
    for place, reported in enumerate(storage.reported_outcomes):
        indices += [outcome[0] for outcome in reported]
        assert indices == list(range(place - DELAY + 1))
        assert [one[1] for one in reported] == [queue.trials[one[0]].id for one in reported]


@pytest.mark.parametrize("delay", [1, 2, 4, 7])
@pytest.mark.parametrize("order", range(3))
def test_trial_waits_for_trials_at_least_delay_places_before_it(delay: int, order: int) -> None:
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_from_outcomes(), TOTAL, delay)
    first = [queue.next_trial() for _ in range(delay)]
    assert None not in first and queue.next_trial() is None and not queue.all_dispatched
    for trial in reversed(queue.trials[1:]):  # all but the one that is waited for
        storage.finish_trial(queue, trial)
        assert queue.next_trial() is None and len(queue.trials) == delay
    storage.finish_trial(queue, queue.trials[0])
    storage.run_launch(queue, seed=order, max_concurrent=delay)
    assert queue.all_finished and len(queue.trials) == TOTAL


def test_without_delay_no_trial_waits_and_nothing_is_reported() -> None:
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_seeds(*range(TOTAL)), TOTAL, None)
    assert [trial.seed for trial in iter(queue.next_trial, None)] == list(range(TOTAL))
    assert storage.reported_outcomes == [[]] * TOTAL and queue.all_dispatched and not queue.all_finished


@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("max_finished", [0, 1, 3, 8, 15, 23])
def test_resumed_sweep_equals_an_uninterrupted_one(max_finished: int, order: int, asha: bool) -> None:
    expected, _ = run_uninterrupted(asha)
    storage = SimulatedStorage()
    storage.run_launch(
        storage.build_queue(suggest_from_outcomes(), TOTAL, DELAY, asha=asha), seed=order, max_finished=max_finished
    )
    before = {row.config.id for row in storage.rows.values() if row.is_finished}
    queue = storage.build_queue(suggest_from_outcomes(), TOTAL, DELAY, asha=asha)
    queue.skip_finished()
    storage.run_launch(queue, seed=order + 1, max_concurrent=2)
    assert queue.trials == expected.dispatched and queue.all_finished
    assert storage.reported_outcomes == expected.reported_outcomes
    assert not before & {trial.id for trial in storage.dispatched}
    assert {run: row.status for run, row in storage.rows.items()} == (
        {run: row.status for run, row in expected.rows.items()}
    )


# ---- rows in storage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "retry_failed", "again"),
    [
        (PENDING, False, True),
        (INTERRUPTED, False, True),
        (DONE, True, False),
        (STOPPED, True, False),
        (DIVERGED, True, False),
        (FAILED, False, False),
        (FAILED, True, True),
    ],
)
def test_finished_trials_are_not_run_again(status: str, retry_failed: bool, again: bool) -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(rows={first.id: build_row(first, status, [3.0])})
    queue = storage.build_queue(suggest_seeds(0, 1), 2, None, retry_failed=retry_failed)
    assert [trial.seed for trial in iter(queue.next_trial, None)] == ([0, 1] if again else [1])
    assert [trial.seed for trial in queue.trials] == [0, 1]


def test_skip_finished_stops_at_the_first_trial_to_run() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(4)]
    storage = SimulatedStorage(rows={one.id: build_row(one, DONE, [3.0]) for one in (trials[0], trials[1], trials[3])})
    queue = storage.build_queue(suggest_seeds(0, 1, 2, 3), 4, 2)
    for _ in range(2):
        queue.skip_finished()
        assert queue.trials == trials[:3] and not queue.all_dispatched
    assert queue.next_trial() == trials[2]
    assert queue.next_trial() is None and queue.all_dispatched and not queue.all_finished
    storage.finish_trial(queue, trials[2])
    assert queue.all_finished


def test_reported_failure_remains_one_if_the_trial_is_run_again() -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(choose_status=lambda trial: FAILED if trial == first else DONE)
    storage.run_launch(storage.build_queue(suggest_seeds(*range(4)), 4, 2), max_concurrent=1)
    reported = storage.reported_outcomes
    assert storage.failed_ids == {first.id} and [outcome[2] for outcome in reported[2]] == [FAILED]

    storage.choose_status = lambda trial: DONE
    again = storage.build_queue(suggest_seeds(*range(4)), 4, 2, retry_failed=True)
    storage.run_launch(again)
    assert storage.dispatched == [first] and storage.rows[first.id].status == DONE and again.all_finished
    assert [[outcome[:3] for outcome in outcomes] for outcomes in storage.reported_outcomes] == (
        [[outcome[:3] for outcome in outcomes] for outcomes in reported]
    )

    later = storage.build_queue(suggest_seeds(*range(6)), 6, 2)  # the search continues
    storage.run_launch(later)
    assert [trial.seed for trial in storage.dispatched] == [4, 5] and later.failed_ids == {first.id}
    assert [outcome[2] for outcomes in storage.reported_outcomes for outcome in outcomes] == [FAILED, DONE, DONE, DONE]


def test_unreported_failure_is_forgotten_if_the_trial_succeeds() -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(
        rows={first.id: build_row(first, FAILED)}, recorded_ids=[first.id], choose_status=lambda trial: DONE
    )
    storage.run_launch(storage.build_queue(suggest_seeds(*range(4)), 4, 3, retry_failed=True))
    assert storage.failed_ids == set()
    assert [outcome[:3] for outcomes in storage.reported_outcomes for outcome in outcomes] == [(0, first.id, DONE)]


def test_failure_reported_only_at_the_end_is_not_recorded() -> None:
    storage = SimulatedStorage(choose_status=lambda trial: FAILED)
    queue = storage.build_queue(suggest_seeds(0, 1, 2), 3, 2)
    storage.run_launch(queue)
    assert [(place, row.status) for place, row in queue.unreported()] == [(1, FAILED), (2, FAILED)]
    assert queue.failed_ids == {TrialConfig(seed=0).id}  # the third trial depended on it


def test_trials_that_differ_from_an_earlier_launch_are_rejected() -> None:
    storage = SimulatedStorage(recorded_ids=[TrialConfig(seed=0).id, TrialConfig(seed=7).id])
    queue = storage.build_queue(suggest_seeds(0, 1), 2, None)
    assert queue.next_trial() == TrialConfig(seed=0)
    with pytest.raises(UserError) as caught:
        queue.next_trial()
    was, now = TrialConfig(seed=7), TrialConfig(seed=1)
    assert f"trial 2 of this search was {was.id} in an earlier launch" in str(caught.value)
    assert f"{now.id} ({now.run_name})" in str(caught.value) and "give the sweep another name" in str(caught.value)


# ---- end of the queue ----------------------------------------------------------------------------------------------


def test_search_is_exhausted_if_nothing_is_suggested() -> None:
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_from_outcomes(num_trials=3), TOTAL, DELAY)
    dispatched = [queue.next_trial() for _ in range(3)]
    assert (queue.exhausted, queue.all_dispatched, queue.all_finished) == (False, False, False)
    assert queue.next_trial() is None
    assert (queue.exhausted, queue.all_dispatched, queue.all_finished) == (True, True, False)
    assert queue.next_trial() is None and len(storage.reported_outcomes) == 4  # no further call
    for trial in dispatched:
        assert trial is not None and not queue.all_finished
        storage.finish_trial(queue, trial)
    assert queue.all_finished and queue.trials == dispatched


def test_at_most_max_trials_are_suggested() -> None:
    storage = SimulatedStorage()
    queue = storage.build_queue(suggest_from_outcomes(), 5, DELAY)
    storage.run_launch(queue)
    assert len(queue.trials) == len(storage.reported_outcomes) == 5
    assert queue.all_finished and not queue.exhausted and queue.next_trial() is None


def test_unreported_outcomes_are_available_at_the_end() -> None:
    storage, queue = run_uninterrupted()
    assert [place for place, _ in queue.unreported()] == list(range(TOTAL - DELAY, TOTAL))
    assert [row.status for _, row in queue.unreported()] == [
        storage.rows[trial.id].status for trial in queue.trials[-DELAY:]
    ]
    one = SimulatedStorage().build_queue(suggest_seeds(0, 1), 2, 2)
    assert one.next_trial() and one.next_trial() and one.unreported() == []


# ---- early stopping -----------------------------------------------------------------------------------------------


def test_trial_that_died_before_its_stop_was_recorded_is_stopped() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    rows = [build_row(one, DONE, [3.0, 2.0, 1.0]) for one in trials[:2]] + [build_row(trials[2], INTERRUPTED, [3.5])]
    storage = SimulatedStorage(rows={row.config.id: row for row in rows})
    queue = storage.build_queue(suggest_seeds(0, 1, 2), 3, 1, asha=True)
    assert queue.next_trial() is None and queue.all_finished
    assert storage.stopped_ids == [trials[2].id]
    assert [(place, row.status) for place, row in queue.unreported()] == [(2, STOPPED)]


@pytest.mark.parametrize(
    ("status", "losses"),
    [
        (STOPPED, [3.5]),
        (INTERRUPTED, [3.5]),
        (STOPPED, [3.5, 1.0]),
        (INTERRUPTED, [3.5, 1.0]),
        (DONE, [3.5, 1.0, 0.5]),
    ],
)
def test_trial_that_continued_above_its_limit_is_reported_as_stopped_there(status: str, losses: list[float]) -> None:
    """Happens if its process died after the checkpoint was written, before Tune received the evaluation."""
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    rows = [build_row(trials[0], DONE, [3.0, 2.0, 1.0]), build_row(trials[1], status, losses)]
    storage = SimulatedStorage(rows={row.config.id: row for row in rows})
    queue = storage.build_queue(suggest_seeds(0, 1, 2), 3, 1, asha=True)
    assert queue.next_trial() == trials[2]
    assert storage.reported_outcomes[-1] == [(1, trials[1].id, STOPPED, [3.5])]
    assert queue.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [3.0, 1.5, 0.1])) == ""


@pytest.mark.parametrize(("losses", "stopped"), [([], False), ([3.0], False), ([3.5], True), ([2.0, 9.0], False)])
def test_trial_is_compared_with_earlier_trials(losses: list[float], stopped: bool) -> None:
    trials = [TrialConfig(seed=seed) for seed in range(2)]
    storage = SimulatedStorage(rows={trials[0].id: build_row(trials[0], DONE, [3.0, 2.0, 1.0])})
    queue = storage.build_queue(suggest_seeds(0, 1), 2, 1, asha=True)
    assert queue.next_trial() == trials[1]
    reason = queue.find_stop_reason(trials[1], build_row(trials[1], INTERRUPTED, losses))
    assert reason == ("its adj val loss after 100 tokens, 3.500, is not among the best third" if stopped else "")


def test_trial_is_not_compared_with_trials_less_than_delay_places_before_it() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    storage = SimulatedStorage(
        rows={one.id: build_row(one, DONE, [loss]) for one, loss in zip(trials, (3.0, 1.0), strict=False)}
    )
    queue = storage.build_queue(suggest_seeds(0, 1, 2), 3, 2, asha=True)
    assert queue.next_trial() == trials[2]
    assert queue.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [2.9])) == ""
    assert queue.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [3.1]))


def test_without_asha_no_trial_is_stopped() -> None:
    storage, queue = run_uninterrupted()
    bad = [build_row(one, INTERRUPTED, [99.0]) for one in queue.trials]
    assert not any(queue.find_stop_reason(row.config, row) for row in bad)
    assert not any(queue.find_stop_reason(one, build_row(one, DONE, simulate_losses(one))) for one in queue.trials)
    assert STOPPED not in {row.status for row in storage.rows.values()}


def test_outcome_of_a_reported_failure_keeps_its_losses() -> None:
    first = TrialConfig(seed=0)
    done = build_row(first, DONE, [3.0, 2.0, 1.0])
    storage = SimulatedStorage(rows={first.id: done}, failed_ids={first.id})
    queue = storage.build_queue(suggest_seeds(0), 1, 1)
    queue.skip_finished()
    assert queue.unreported() == [(0, replace(done, status=FAILED))]
