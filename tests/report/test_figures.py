"""Data of the report's figures: curves, series, parallel coordinates and bars."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from sample_rows import FOLDER, sample_row

from raylm.report.figures import panels
from raylm.report.figures.build import build_figures
from raylm.results.rows import DIVERGED, FAILED, INTERRUPTED, PENDING, Row, SweepRows
from raylm.results.storage import Folder


def build(*rows: Row) -> panels.Figures:
    return build_figures(SweepRows(Folder(FOLDER), list(rows)))


# ---- loss curves --------------------------------------------------------------------------------------------------


def test_curve_has_epochs_on_its_axis() -> None:
    (panel,) = build(sample_row(2.0, epochs=2)).curves
    assert (panel.title, panel.legend) == ("pydocs, gpt2-nano", "")
    (curve,) = panel.curves
    assert curve.train == ((0.5, 2.2), (1.0, 2.1), (1.5, 2 + 1 / 15), (2.0, 2.05))
    assert curve.val == ((1.0, 3.0), (2.0, 2.0))
    assert panel.loss_range == (2.0, 3.0)


def test_curve_of_val_losses_begins_with_the_loss_before_fine_tuning() -> None:
    row = replace(sample_row(3.0, epochs=2), zero_shot_loss=4.5)
    (panel,) = build(row).curves
    assert panel.curves[0].val == ((0.0, 4.5), (1.0, 4.0), (2.0, 3.0))
    assert panel.loss_range[1] == 4.5


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
    (context,) = data.select_field("context_length")
    assert (context.title, context.field) == ("pydocs, gpt2-nano", "context_length")
    assert context.legend == "batch size, learning rate"
    assert [line.label for line in context.series] == ["8, 5e-05", "16, 5e-05"]
    assert context.series[0].points == ((256, 0.25), (512, 0.5))
    (batch,) = data.select_field("batch_size")
    assert [line.label for line in batch.series] == ["512, 5e-05", "256, 5e-05"]
    assert batch.series[1].points == ((8, 0.25), (16, 1.25))


def test_learning_rate_has_a_logarithmic_axis_and_seeds_are_averaged() -> None:
    rows = [sample_row(2 + n + seed / 10, learning_rate=10.0**-n, seed=seed) for n in (3, 4) for seed in (0, 1)]
    (panel,) = build(*rows).by_field
    assert (panel.field, panel.scale, panel.is_joined, panel.legend) == ("learning_rate", "log", True, "")
    (line,) = panel.series
    assert line.points == ((1e-4, 6.05), (1e-3, 5.05))
    assert line.intervals == pytest.approx([12.706 * 0.05] * 2)  # t * s / sqrt(2), s = 0.1 / sqrt(2)
    assert [len(runs) for runs in line.runs] == [2, 2]


def test_search_has_a_point_for_each_trial_and_no_lines() -> None:
    fields: list[dict[str, Any]] = [
        {"learning_rate": 10.0 ** -(n + 2), "dropout": n % 3 / 10, "optimizer": ("adamw", "adafactor")[n % 2]}
        for n in range(5)
    ]
    data = build(*(sample_row(2.0 + n, warmup_ratio=0.01 + 0.09 * n, **own) for n, own in enumerate(fields)))
    assert [(panel.field, panel.scale) for panel in data.by_field] == [
        ("optimizer", "categories"),
        ("learning_rate", "log"),
        ("warmup_ratio", "linear"),
        ("dropout", "linear"),
    ]
    assert not any(panel.is_joined for panel in data.by_field) and data.heat_maps == ()
    assert data.by_field[0].categories == ("adamw", "adafactor")
    assert data.by_field[0].series[0].points == ((0, 2.0), (0, 4.0), (0, 6.0), (1, 3.0), (1, 5.0))


def test_models_are_ordered_by_size() -> None:
    (panel,) = build(sample_row(2.0, model="gpt2-xl"), sample_row(3.0, model="gpt2")).by_field
    assert (panel.title, panel.categories, panel.series[0].points) == (
        "pydocs",
        ("gpt2", "gpt2-xl"),
        ((0, 3.0), (1, 2.0)),
    )


# ---- two fields ---------------------------------------------------------------------------------------------------


def grid(**fields: Any) -> list[Row]:
    return [
        sample_row(2 + r + c / 1024, learning_rate=10.0**-r, context_length=c, **fields)
        for r in (3, 4)
        for c in (256, 512)
    ]


def test_grid_of_two_fields_is_a_heat_map_with_the_lowest_loss_of_each_cell() -> None:
    rows = grid()
    rows[-1] = sample_row(9.0, status=DIVERGED, learning_rate=1e-4, context_length=512)
    (heat_map,) = build(*rows, *grid(seed=1)[:3]).heat_maps
    assert (heat_map.row_field, heat_map.column_field) == ("context length", "learning rate")
    assert (heat_map.row_labels, heat_map.column_labels) == (("256", "512"), ("0.0001", "0.001"))
    assert heat_map.losses == ((6.25, 5.25), (None, 5.5)) and heat_map.remarks == (("", ""), ("diverged", ""))
    more = build(*rows, *grid(dropout=0.1)).heat_maps[1]
    assert (more.row_field, more.column_field) == ("context length", "dropout")
    assert more.losses == ((5.25, 5.25), (5.5, 5.5)) and more.num_trials == 2


def test_fields_that_form_no_grid_have_no_heat_map() -> None:
    assert build(*grid()[:3]).heat_maps == ()
    assert build(*grid(), sample_row(learning_rate=1e-3, context_length=256, dropout=0.1)).heat_maps == ()


# ---- loss against cost --------------------------------------------------------------------------------------------


def test_front_holds_the_trials_that_no_other_beats() -> None:
    costs = [("gpt2", 10.0, 3.0), ("gpt2", 20.0, 3.5), ("gpt2-xl", 20.0, 2.5), ("gpt2-xl", 30.0, 2.5)]
    data = build(*(sample_row(loss, model=m, seconds=s, seed=n) for n, (m, s, loss) in enumerate(costs)))
    (by_time,), (by_parameters,) = data.by_training_time, data.by_parameters
    assert by_time.front == ((10.0, 3.0), (20.0, 2.5)) and [line.label for line in by_time.series] == [
        "gpt2",
        "gpt2-xl",
    ]
    assert by_parameters.front == ((124_439_808, 3.0), (1_557_611_200, 2.5))
    assert build(sample_row(model="gpt2", seed=0), sample_row(model="gpt2", seed=1)).by_parameters == ()


def test_only_done_rows_are_compared() -> None:
    statuses = (DIVERGED, FAILED, INTERRUPTED)
    others = [sample_row(context_length=256 * 2**n, status=status) for n, status in enumerate(statuses)]
    data = build(*others, sample_row(context_length=64), sample_row(None, status=PENDING, context_length=32))
    assert data.by_field == () and data.parallel_coordinates == ()
    assert len(data.curves[0].curves) == 4


def test_single_value_gives_no_figure() -> None:
    data = build(sample_row(seed=0), sample_row(seed=1))
    assert (data.by_field, data.heat_maps) == ((), ())


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
    for chart, values in ((data.training_seconds, (4.0, 10.0)), (data.tokens_per_second, (250.0, 100.0))):
        assert chart is not None
        assert (chart.legend, chart.labels, chart.values, chart.num_omitted) == ("seed", ("0", "2"), values, 0)
        assert [run.split("-")[-2] for run in chart.runs] == ["1024x8", "s2"]


def test_bars_beyond_the_maximum_are_counted() -> None:
    data = build(*(sample_row(seed=seed) for seed in range(panels.MAX_BARS + 3))).training_seconds
    assert data is not None and (len(data.labels), data.num_omitted) == (panels.MAX_BARS, 3)


# ---- edge cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, DIVERGED, INTERRUPTED, PENDING])
def test_rows_without_checkpoint_give_no_figure(status: str) -> None:
    assert build(sample_row(None, status=status)) == panels.Figures((), (), (), (), (), (), None, None)
