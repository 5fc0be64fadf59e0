"""The line-up: whatever ends when, a trial follows from those that stand far enough before it, and from no others."""

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

TOTAL, LAG = 24, 4


def suggesting(most: int = 1_000_000) -> SuggestFn:
    """Suggests trials that follow from all that it has been told, so many of them."""
    told: list[str] = []

    def propose(outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
        nonlocal most
        most -= 1
        told.extend(f"{place} {row.config.id} {row.status} {row.metrics}" for place, row in outcomes)
        return TrialConfig(seed=zlib.crc32(f"{most} {told}".encode())) if most >= 0 else None

    return propose


def seeds(*numbers: int) -> SuggestFn:
    """Proposes trials with these seeds, whatever it is told."""
    left = iter([TrialConfig(seed=number) for number in numbers])
    return lambda outcomes: next(left, None)


def undisturbed(asha: bool = False) -> tuple[SimulatedStorage, TrialQueue]:
    storage = SimulatedStorage()
    lineup = storage.build_queue(suggesting(), TOTAL, LAG, asha=asha)
    storage.run_launch(lineup, max_concurrent=1)
    return storage, lineup


# ---- what a trial follows from ------------------------------------------------------------------------------------


def test_the_simulation_has_every_kind_of_ending() -> None:
    assert {row.status for row in undisturbed(asha=True)[0].rows.values()} == {DONE, STOPPED, DIVERGED, FAILED}


@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 4, 100])
@pytest.mark.parametrize("order", range(4))
def test_trials_and_what_is_told_of_them_are_the_same_in_whatever_order_they_end(
    order: int, slots: int, asha: bool
) -> None:
    expected, _ = undisturbed(asha)
    storage = SimulatedStorage()
    lineup = storage.build_queue(suggesting(), TOTAL, LAG, asha=asha)
    storage.run_launch(lineup, seed=order, max_concurrent=slots)
    assert storage.dispatched == expected.dispatched == lineup.trials and len(lineup.trials) == TOTAL
    assert storage.reported_outcomes == expected.reported_outcomes
    assert {run: row.status for run, row in storage.rows.items()} == (
        {run: row.status for run, row in expected.rows.items()}
    )


def test_a_proposal_is_told_the_outcomes_of_the_trials_that_stand_far_enough_before_it() -> None:
    storage, lineup = undisturbed()
    so_far: list[int] = []
    for place, told in enumerate(storage.reported_outcomes):
        so_far += [one[0] for one in told]
        assert so_far == list(range(place - LAG + 1))
        assert [one[1] for one in told] == [lineup.trials[one[0]].id for one in told]


@pytest.mark.parametrize("lag", [1, 2, 4, 7])
@pytest.mark.parametrize("order", range(3))
def test_a_trial_waits_until_those_far_enough_before_it_have_ended(lag: int, order: int) -> None:
    storage = SimulatedStorage()
    lineup = storage.build_queue(suggesting(), TOTAL, lag)
    first = [lineup.next_trial() for _ in range(lag)]
    assert None not in first and lineup.next_trial() is None and not lineup.all_dispatched
    for trial in reversed(lineup.trials[1:]):  # any but the one that is waited for
        storage.finish_trial(lineup, trial)
        assert lineup.next_trial() is None and len(lineup.trials) == lag
    storage.finish_trial(lineup, lineup.trials[0])
    storage.run_launch(lineup, seed=order, max_concurrent=lag)
    assert lineup.all_finished and len(lineup.trials) == TOTAL


def test_without_a_lag_no_trial_waits_and_nothing_is_told() -> None:
    storage = SimulatedStorage()
    lineup = storage.build_queue(seeds(*range(TOTAL)), TOTAL, None)
    assert [one.seed for one in iter(lineup.next_trial, None)] == list(range(TOTAL))
    assert storage.reported_outcomes == [[]] * TOTAL and lineup.all_dispatched and not lineup.all_finished


@pytest.mark.parametrize("asha", [False, True])
@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("ends", [0, 1, 3, 8, 15, 23])
def test_a_sweep_that_went_down_goes_on_as_if_nothing_had_been(ends: int, order: int, asha: bool) -> None:
    expected, _ = undisturbed(asha)
    storage = SimulatedStorage()
    storage.run_launch(storage.build_queue(suggesting(), TOTAL, LAG, asha=asha), seed=order, max_finished=ends)
    before = {row.config.id for row in storage.rows.values() if row.is_finished}
    lineup = storage.build_queue(suggesting(), TOTAL, LAG, asha=asha)
    lineup.skip_finished()
    storage.run_launch(lineup, seed=order + 1, max_concurrent=2)
    assert lineup.trials == expected.dispatched and lineup.all_finished
    assert storage.reported_outcomes == expected.reported_outcomes
    assert not before & {trial.id for trial in storage.dispatched}
    assert {run: row.status for run, row in storage.rows.items()} == (
        {run: row.status for run, row in expected.rows.items()}
    )


# ---- what is in storage already -----------------------------------------------------------------------------------


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
def test_trials_that_ended_are_not_run_again(status: str, retry_failed: bool, again: bool) -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(rows={first.id: build_row(first, status, [3.0])})
    lineup = storage.build_queue(seeds(0, 1), 2, None, retry_failed=retry_failed)
    assert [one.seed for one in iter(lineup.next_trial, None)] == ([0, 1] if again else [1])
    assert [one.seed for one in lineup.trials] == [0, 1]


def test_looking_ahead_goes_up_to_the_first_trial_to_run_and_keeps_it() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(4)]
    storage = SimulatedStorage(rows={one.id: build_row(one, DONE, [3.0]) for one in (trials[0], trials[1], trials[3])})
    lineup = storage.build_queue(seeds(0, 1, 2, 3), 4, 2)
    for _ in range(2):
        lineup.skip_finished()
        assert lineup.trials == trials[:3] and not lineup.all_dispatched
    assert lineup.next_trial() == trials[2]
    assert lineup.next_trial() is None and lineup.all_dispatched and not lineup.all_finished
    storage.finish_trial(lineup, trials[2])
    assert lineup.all_finished


def test_a_failure_that_was_told_stays_one_when_the_trial_is_run_again() -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(choose_status=lambda trial: FAILED if trial == first else DONE)
    storage.run_launch(storage.build_queue(seeds(*range(4)), 4, 2), max_concurrent=1)
    told = storage.reported_outcomes
    assert storage.failed_ids == {first.id} and [one[2] for one in told[2]] == [FAILED]

    storage.choose_status = lambda trial: DONE
    again = storage.build_queue(seeds(*range(4)), 4, 2, retry_failed=True)
    storage.run_launch(again)
    assert storage.dispatched == [first] and storage.rows[first.id].status == DONE and again.all_finished
    assert [[one[:3] for one in several] for several in storage.reported_outcomes] == (
        [[one[:3] for one in several] for several in told]
    )

    later = storage.build_queue(seeds(*range(6)), 6, 2)  # the search goes on: the told failure is still one
    storage.run_launch(later)
    assert [one.seed for one in storage.dispatched] == [4, 5] and later.failed_ids == {first.id}
    assert [one[2] for several in storage.reported_outcomes for one in several] == [FAILED, DONE, DONE, DONE]


def test_a_failure_that_nobody_was_told_of_is_forgotten_when_the_trial_succeeds() -> None:
    first = TrialConfig(seed=0)
    storage = SimulatedStorage(
        rows={first.id: build_row(first, FAILED)}, recorded_ids=[first.id], choose_status=lambda trial: DONE
    )
    storage.run_launch(storage.build_queue(seeds(*range(4)), 4, 3, retry_failed=True))
    assert storage.failed_ids == set()
    assert [one[:3] for several in storage.reported_outcomes for one in several] == [(0, first.id, DONE)]


def test_a_failure_that_is_looked_up_in_the_end_has_had_no_part_in_what_came_after() -> None:
    storage = SimulatedStorage(choose_status=lambda trial: FAILED)
    lineup = storage.build_queue(seeds(0, 1, 2), 3, 2)
    storage.run_launch(lineup)
    assert [(place, row.status) for place, row in lineup.unreported()] == [(1, FAILED), (2, FAILED)]
    assert lineup.failed_ids == {TrialConfig(seed=0).id}  # the third trial followed from it


def test_trials_that_are_others_than_in_an_earlier_launch_are_refused() -> None:
    storage = SimulatedStorage(recorded_ids=[TrialConfig(seed=0).id, TrialConfig(seed=7).id])
    lineup = storage.build_queue(seeds(0, 1), 2, None)
    assert lineup.next_trial() == TrialConfig(seed=0)
    with pytest.raises(UserError) as caught:
        lineup.next_trial()
    was, now = TrialConfig(seed=7), TrialConfig(seed=1)
    assert f"trial 2 of this search was {was.id} in an earlier launch" in str(caught.value)
    assert f"{now.id} ({now.run_name})" in str(caught.value) and "give the sweep another name" in str(caught.value)


# ---- how it ends --------------------------------------------------------------------------------------------------


def test_a_search_is_exhausted_when_nothing_is_proposed_any_more() -> None:
    storage = SimulatedStorage()
    lineup = storage.build_queue(suggesting(most=3), TOTAL, LAG)
    handed = [lineup.next_trial() for _ in range(3)]
    assert (lineup.exhausted, lineup.all_dispatched, lineup.all_finished) == (False, False, False)
    assert lineup.next_trial() is None
    assert (lineup.exhausted, lineup.all_dispatched, lineup.all_finished) == (True, True, False)
    assert lineup.next_trial() is None and len(storage.reported_outcomes) == 4  # it is not asked again
    for trial in handed:
        assert trial is not None and not lineup.all_finished
        storage.finish_trial(lineup, trial)
    assert lineup.all_finished and lineup.trials == handed


def test_at_most_so_many_trials_are_proposed() -> None:
    storage = SimulatedStorage()
    lineup = storage.build_queue(suggesting(), 5, LAG)
    storage.run_launch(lineup)
    assert len(lineup.trials) == len(storage.reported_outcomes) == 5
    assert lineup.all_finished and not lineup.exhausted and lineup.next_trial() is None


def test_what_no_proposal_was_told_is_there_in_the_end() -> None:
    storage, lineup = undisturbed()
    assert [place for place, _ in lineup.unreported()] == list(range(TOTAL - LAG, TOTAL))
    assert [row.status for _, row in lineup.unreported()] == [
        storage.rows[one.id].status for one in lineup.trials[-LAG:]
    ]
    one = SimulatedStorage().build_queue(seeds(0, 1), 2, 2)
    assert one.next_trial() and one.next_trial() and one.unreported() == []


# ---- early stopping -----------------------------------------------------------------------------------------------


def test_a_trial_that_died_before_its_stop_was_written_down_is_stopped_and_not_run() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    rows = [build_row(one, DONE, [3.0, 2.0, 1.0]) for one in trials[:2]] + [build_row(trials[2], INTERRUPTED, [3.5])]
    storage = SimulatedStorage(rows={row.config.id: row for row in rows})
    lineup = storage.build_queue(seeds(0, 1, 2), 3, 1, asha=True)
    assert lineup.next_trial() is None and lineup.all_finished
    assert storage.stopped_ids == [trials[2].id]
    assert [(place, row.status) for place, row in lineup.unreported()] == [(2, STOPPED)]


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
def test_a_trial_that_went_on_beyond_its_limit_is_told_as_stopped_there(status: str, losses: list[float]) -> None:
    """As where its process died after its checkpoint was written and before Tune heard of the evaluation."""
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    rows = [build_row(trials[0], DONE, [3.0, 2.0, 1.0]), build_row(trials[1], status, losses)]
    storage = SimulatedStorage(rows={row.config.id: row for row in rows})
    lineup = storage.build_queue(seeds(0, 1, 2), 3, 1, asha=True)
    assert lineup.next_trial() == trials[2]
    assert storage.reported_outcomes[-1] == [(1, trials[1].id, STOPPED, [3.5])]
    assert lineup.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [3.0, 1.5, 0.1])) == ""


@pytest.mark.parametrize(("losses", "stopped"), [([], False), ([3.0], False), ([3.5], True), ([2.0, 9.0], False)])
def test_a_trial_is_judged_by_those_before_it(losses: list[float], stopped: bool) -> None:
    trials = [TrialConfig(seed=seed) for seed in range(2)]
    storage = SimulatedStorage(rows={trials[0].id: build_row(trials[0], DONE, [3.0, 2.0, 1.0])})
    lineup = storage.build_queue(seeds(0, 1), 2, 1, asha=True)
    assert lineup.next_trial() == trials[1]
    reason = lineup.find_stop_reason(trials[1], build_row(trials[1], INTERRUPTED, losses))
    assert reason == ("its adj val loss after 100 tokens, 3.500, is not among the best third" if stopped else "")


def test_a_trial_is_not_judged_by_those_too_close_before_it() -> None:
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    storage = SimulatedStorage(
        rows={one.id: build_row(one, DONE, [loss]) for one, loss in zip(trials, (3.0, 1.0), strict=False)}
    )
    lineup = storage.build_queue(seeds(0, 1, 2), 3, 2, asha=True)
    assert lineup.next_trial() == trials[2]
    assert lineup.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [2.9])) == ""
    assert lineup.find_stop_reason(trials[2], build_row(trials[2], INTERRUPTED, [3.1]))


def test_without_early_stopping_no_trial_is_beyond_its_limit() -> None:
    storage, lineup = undisturbed()
    bad = [build_row(one, INTERRUPTED, [99.0]) for one in lineup.trials]
    assert not any(lineup.find_stop_reason(row.config, row) for row in bad)
    assert not any(lineup.find_stop_reason(one, build_row(one, DONE, simulate_losses(one))) for one in lineup.trials)
    assert STOPPED not in {row.status for row in storage.rows.values()}


def test_a_row_that_says_failed_where_the_failure_was_told_keeps_its_losses() -> None:
    first = TrialConfig(seed=0)
    done = build_row(first, DONE, [3.0, 2.0, 1.0])
    storage = SimulatedStorage(rows={first.id: done}, failed_ids={first.id})
    lineup = storage.build_queue(seeds(0), 1, 1)
    lineup.skip_finished()
    assert lineup.unreported() == [(0, replace(done, status=FAILED))]
