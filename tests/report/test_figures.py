"""Data of the report's figures: curves, series, parallel coordinates and bars."""

from __future__ import annotations

import math

import pytest
from sample_rows import FOLDER, sample_row

from raylm.report import figures
from raylm.results.rows import DIVERGED, FAILED, INTERRUPTED, PENDING, Row, SweepRows
from raylm.results.storage import Folder


def build(*rows: Row) -> figures.Figures:
    return figures.build_figures(SweepRows(Folder(FOLDER), list(rows)))


# ---- loss curves --------------------------------------------------------------------------------------------------


def test_curve_has_epochs_on_its_axis() -> None:
    (panel,) = build(sample_row(2.0, epochs=2)).curves
    assert (panel.title, panel.legend) == ("pydocs, gpt2-nano", "")
    (curve,) = panel.curves
    assert curve.train == ((0.5, 2.2), (1.0, 2.1), (1.5, 2 + 1 / 15), (2.0, 2.05))
    assert curve.val == ((1.0, 3.0), (2.0, 2.0))
    assert panel.loss_range == (2.0, 3.0)


def test_curves_are_labelled_with_the_varying_fields() -> None:
    rows = [sample_row(batch_size=4), sample_row(batch_size=8, dropout=0.1), sample_row(batch_size=8, pretrained=False)]
    (panel,) = build(*rows).curves
    assert panel.legend == "batch size, dropout, pretrained"
    assert [curve.label for curve in panel.curves] == ["4, default, yes", "8, 0.1, yes", "8, default, no"]


def test_each_dataset_has_its_own_panel_and_loss_range() -> None:
    rows = [sample_row(3.0, dataset="imdb"), sample_row(4.0, dataset="wikitext2")]
    panels = build(*rows, sample_row(5.0, dataset="imdb", seed=1)).curves
    assert [panel.title for panel in panels] == ["imdb, gpt2-nano", "wikitext2, gpt2-nano"]
    assert [panel.loss_range for panel in panels] == [(3.0, 5.2), (4.0, 4.2)]
    assert [panel.legend for panel in panels] == ["seed", ""]


def test_many_curves_are_split_by_model_and_limited_to_the_best() -> None:
    many = [sample_row(9.0 - seed / 10, model="gpt2", seed=seed) for seed in range(9)]
    first, second = build(*many, sample_row(2.0, model="gpt2-xl")).curves
    assert (first.title, second.title) == ("pydocs, gpt2: best 6 of 9", "pydocs, gpt2-xl")
    assert [curve.label for curve in first.curves] == ["3", "4", "5", "6", "7", "8"]
    assert first.loss_range == second.loss_range
    assert (second.legend, second.curves[0].label) == ("seed", "0")


def test_curve_shows_the_status_and_skips_losses_that_are_not_finite() -> None:
    stopped = sample_row(4.0, status=DIVERGED, seed=1)
    assert stopped.latest_checkpoint is not None
    stopped.latest_checkpoint.progress.curve.append((10, math.nan))
    (panel,) = build(sample_row(seed=0), stopped, sample_row(None, status=FAILED, seed=2)).curves
    assert [curve.label for curve in panel.curves] == ["0", "1 (diverged)"]
    assert all(math.isfinite(loss) for curve in panel.curves for _, loss in curve.train)


# ---- val loss against a field -------------------------------------------------------------------------------------


def test_line_joins_trials_equal_in_all_other_fields() -> None:
    grid = [sample_row(n + c / 1024, context_length=c, batch_size=b) for n, b in enumerate((8, 16)) for c in (512, 256)]
    data = build(*grid, sample_row(context_length=1024, batch_size=8, learning_rate=1e-3))
    (context,) = data.val_loss_by_context_length
    assert (context.title, context.field) == ("pydocs, gpt2-nano", "context_length")
    assert context.legend == "batch size, learning rate"
    assert [line.label for line in context.series] == ["8, 5e-05", "16, 5e-05"]
    assert context.series[0].points == ((256, 0.25), (512, 0.5))
    (batch,) = data.val_loss_by_batch_size
    assert [line.label for line in batch.series] == ["512, 5e-05", "256, 5e-05"]
    assert batch.series[1].points == ((8, 0.25), (16, 1.25))


def test_only_done_rows_are_compared() -> None:
    statuses = (DIVERGED, FAILED, INTERRUPTED)
    others = [sample_row(context_length=256 * 2**n, status=status) for n, status in enumerate(statuses)]
    data = build(*others, sample_row(context_length=64), sample_row(None, status=PENDING, context_length=32))
    assert data.val_loss_by_context_length == () and data.parallel_coordinates == ()
    assert len(data.curves[0].curves) == 4


def test_single_value_gives_no_figure() -> None:
    data = build(sample_row(seed=0), sample_row(seed=1))
    assert data.val_loss_by_context_length == data.val_loss_by_batch_size == ()


# ---- parallel coordinates -----------------------------------------------------------------------------------------


def test_parallel_coordinates_have_an_axis_per_varying_field() -> None:
    rows = [
        sample_row(3.0, model="gpt2", batch_size=16),
        sample_row(2.0, model="gpt2-xl", batch_size=8),
        sample_row(2.5, model="gpt2", batch_size=64),
    ]
    (panel,) = build(*rows).parallel_coordinates
    assert [axis.name for axis in panel.axes] == ["model", "batch size", "val loss"]
    assert panel.axes[0].ticks == ((0, "gpt2"), (1, "gpt2-xl"))
    assert panel.axes[1].ticks == ((0, "8"), (0.5, "16"), (1, "64"))
    assert panel.axes[2].ticks == ((0, "2.0"), (0.25, "2.2"), (0.5, "2.5"), (0.75, "2.8"), (1, "3.0"))
    assert panel.coordinates == ((0, 0.5, 1), (1, 0, 0), (0, 1, 0.5))


def test_axis_of_many_numbers_is_to_scale() -> None:
    (panel,) = build(*(sample_row(2.0, learning_rate=10.0**-n) for n in range(9))).parallel_coordinates
    assert [round(line[0], 9) for line in panel.coordinates] == [1 - n / 8 for n in range(9)]
    assert [label for _, label in panel.axes[0].ticks] == ["1e-08", "1e-06", "0.0001", "0.01", "1"]
    assert panel.axes[1].ticks == ((0.5, "2"),)


def test_default_value_is_placed_below_numbers() -> None:
    (panel,) = build(sample_row(dropout=0.2), sample_row(dropout=None), sample_row(dropout=0.1)).parallel_coordinates
    assert panel.axes[0].ticks == ((0, "default"), (0.5, "0.1"), (1, "0.2"))


# ---- time and speed -----------------------------------------------------------------------------------------------


def test_every_timed_row_has_a_bar() -> None:
    untimed = [sample_row(None, seed=1), sample_row(seed=3, seconds=0.0)]
    data = build(sample_row(seed=0, seconds=4.0), sample_row(seed=2, status=FAILED), *untimed)
    assert data.training_seconds == figures.BarChart("seed", ("0", "2"), (4.0, 10.0), 0)
    assert data.tokens_per_second == figures.BarChart("seed", ("0", "2"), (250.0, 100.0), 0)


def test_bars_beyond_the_maximum_are_counted() -> None:
    data = build(*(sample_row(seed=seed) for seed in range(figures.MAX_BARS + 3))).training_seconds
    assert data is not None and (len(data.labels), data.num_omitted) == (figures.MAX_BARS, 3)


# ---- edge cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, DIVERGED, INTERRUPTED, PENDING])
def test_rows_without_checkpoint_give_no_figure(status: str) -> None:
    assert build(sample_row(None, status=status)) == figures.Figures((), (), (), (), None, None)
