"""ASHA: rungs, the trials compared, and the losses that pass."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import build_row

from raylm.config.trial import TrialConfig
from raylm.results.measures import NATS_PER_BYTE, Measure
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED
from raylm.tuning import asha

TRIAL = TrialConfig(dataset="wikitext2", context_length=256)


def peer(**fields: Any) -> TrialConfig:
    return TrialConfig(**{"dataset": "wikitext2", "context_length": 256, **fields})


# ---- rungs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch_tokens", "epochs", "rungs"),
    [
        (900, 1, [100, 300]),
        (900, 2, [100, 300, 900]),
        (900, 3, [100, 300, 900]),
        (900, 4, [100, 300, 900, 2700]),
        (1000, 1, [112, 334]),
        (7, 1, [1, 3]),
        (2_391_884, 1, [265_765, 797_295]),
    ],
)
def test_rungs_are_at_a_ninth_a_third_one_and_three_epochs(epoch_tokens: int, epochs: int, rungs: list[int]) -> None:
    assert asha.compute_rungs(epoch_tokens, epochs) == rungs


@given(st.integers(1, 10**10), st.integers(1, 100))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_rungs_are_exact_and_before_the_end(epoch_tokens: int, epochs: int) -> None:
    exact = [Fraction(epoch_tokens, 9) * 3**n for n in range(8)]
    assert asha.compute_rungs(epoch_tokens, epochs) == [
        rung for rung in map(math.ceil, exact) if rung < epoch_tokens * epochs
    ]


# ---- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 10, 31])
def test_limit_is_the_quantile_of_the_best_third(number: int) -> None:
    losses = np.random.default_rng(number).normal(3, 1, size=(number, 2))
    earlier_rows = [build_row(peer(seed=n), DONE, list(its)) for n, its in enumerate(losses)]
    found = asha.compute_loss_limits(
        TRIAL, earlier_rows, epoch_tokens=300
    )  # evaluated at 100 and at 200; rungs at 34 and at 100
    assert list(found) == [34, 100]
    assert found[34] == found[100] == pytest.approx(np.quantile(losses[:, 0], 1 / 3), abs=1e-12)
    assert asha.compute_loss_limits(TRIAL, earlier_rows, epoch_tokens=600)[200] == pytest.approx(
        np.quantile(losses[:, 1], 1 / 3)
    )


@pytest.mark.parametrize(
    ("fields", "compared"),
    [
        ({"model": "gpt2"}, True),
        ({"learning_rate": 1e-2, "batch_size": 64, "epochs": 7, "pretrained": False}, True),
        ({"dataset": "imdb"}, False),
        ({"context_length": 512}, False),
    ],
)
def test_trial_is_compared_within_its_dataset_and_context_length(fields: dict[str, Any], compared: bool) -> None:
    found = asha.compute_loss_limits(TRIAL, [build_row(peer(**fields), DONE, [3.0, 2.0, 1.0])], epoch_tokens=900)
    assert found == ({100: 3.0, 300: 1.0} if compared else {})


def test_search_compares_trials_of_all_context_lengths_within_a_dataset() -> None:
    rows = [build_row(peer(context_length=512), DONE, [3.0]), build_row(peer(dataset="imdb"), DONE, [1.0])]
    assert asha.compute_loss_limits(TRIAL, rows, 900, any_context=True) == {100: 3.0}


def test_trial_is_compared_within_its_splits() -> None:
    trial, other = (TrialConfig(dataset="me/texts", validation_split=split) for split in ("test", "dev"))
    for row, compared in ((trial, True), (other, False)):
        assert bool(asha.compute_loss_limits(trial, [build_row(row, DONE, [3.0, 2.0, 1.0])], 900)) == compared


@pytest.mark.parametrize(("status", "counts"), [(DONE, True), (STOPPED, True), (DIVERGED, False), (FAILED, False)])
def test_diverged_and_failed_trials_are_ignored(status: str, counts: bool) -> None:
    earlier_rows = [build_row(peer(seed=1), DONE, [3.0]), build_row(peer(seed=2), status, [1.5])]
    assert asha.compute_loss_limits(TRIAL, earlier_rows, epoch_tokens=900) == {100: 2.0 if counts else 3.0}


def test_trial_with_another_tokenizer_is_compared_by_bytes_or_not_at_all() -> None:
    other = peer(seed=1, model="gpt2")
    factors = {one.corpus_key: factor for one, factor in ((TRIAL, 0.5), (other, 0.25))}
    rows = [build_row(other, DONE, [3.0])]
    per_byte = Measure(NATS_PER_BYTE, factors=factors)
    assert asha.compute_loss_limits(TRIAL, rows, 900, per_byte) == {100: 0.75}
    lossy = replace(per_byte, excluded=frozenset([other.corpus_key]))
    assert asha.compute_loss_limits(TRIAL, rows, 900, lossy) == {}
    assert asha.compute_loss_limits(other, [build_row(TRIAL, DONE, [3.0])], 900, lossy) == {}


def test_rung_without_results_has_no_limit() -> None:
    stopped = build_row(peer(seed=1), STOPPED, [2.0])
    assert asha.compute_loss_limits(TRIAL, [], epoch_tokens=900) == {}
    assert asha.compute_loss_limits(TRIAL, [build_row(peer(), DONE)], epoch_tokens=900) == {}
    assert asha.compute_loss_limits(TRIAL, [stopped], epoch_tokens=900) == {100: 2.0}
    assert asha.compute_loss_limits(
        TRIAL, [stopped, build_row(peer(seed=2), DONE, [5.0, 4.0, 3.0])], epoch_tokens=900
    ) == ({100: 3.0, 300: 3.0})


def test_longer_trial_has_more_rungs() -> None:
    earlier_rows = [build_row(peer(seed=1, epochs=4), DONE, [3.0, 2.0, 1.0], num_tokens=3600)]
    assert list(asha.compute_loss_limits(peer(epochs=1), earlier_rows, epoch_tokens=900)) == [100, 300]
    assert list(asha.compute_loss_limits(peer(epochs=4), earlier_rows, epoch_tokens=900)) == [100, 300, 900, 2700]


# ---- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "limits", "step"),
    [
        ([3.0, 2.0, 1.0], {}, None),
        ([], {100: 0.0}, None),
        ([3.0, 2.0, 1.0], {100: 3.0, 200: 2.0}, None),  # a loss equal to the limit passes
        ([3.0, 2.0, 1.0], {100: 2.9, 200: 1.9}, 1),
        ([3.0, 2.0, 1.0], {200: 1.9, 100: 2.9}, 1),
        ([3.0, 2.0, 1.0], {100: 3.1, 200: 1.9}, 2),
        ([3.0, 2.0, 1.0], {101: 2.5}, None),  # judged by the first evaluation at or after the rung
        ([3.0, 2.0, 1.0], {101: 1.5}, 2),
        ([3.0, 2.0], {201: 0.0}, None),  # rung not reached
    ],
)
def test_trial_is_stopped_at_the_first_rung_where_it_is_worse(
    losses: list[float], limits: dict[int, float], step: int | None
) -> None:
    found = asha.find_stop_evaluation(build_row(TRIAL, DONE, losses).evaluations, limits)
    assert (found and found.step) == step
