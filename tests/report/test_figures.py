"""The data behind the report's figures, from results made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raylm.config.trial import TrialConfig
from raylm.report import figures, plots
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, Results, Row, SavedCheckpoint
from raylm.results.storage import Folder

FOLDER = Path("runs/made")


def row(val_loss: float | None = 3.0, *, status: str = DONE, seconds: float = 10.0, **fields: Any) -> Row:
    """A trial of ten steps and 1,000 tokens an epoch; without a loss, one that has no checkpoint."""
    config = TrialConfig.from_record(fields)
    if val_loss is None:
        return Row(config, status, "", None, None)
    steps = 10 * config.epochs
    progress = Progress(steps, 4, step=steps, tokens_seen=1000 * config.epochs, training_seconds=seconds)
    progress.curve = [(step, val_loss + 1 / step) for step in range(5, steps + 1, 5)]
    for epoch in range(1, config.epochs + 1):
        loss = val_loss + config.epochs - epoch
        progress.evaluations.append(EvalMetrics(epoch, 10 * epoch, 1000 * epoch, loss, loss, loss))
    saved = SavedCheckpoint(f"launch-001/{config.run_name}/checkpoint_000000", progress)
    return Row(config, status, "", saved, saved)


def collect(*rows: Row) -> figures.Figures:
    return figures.build_figures(Results(Folder(FOLDER), list(rows)))


# ---- loss curves --------------------------------------------------------------------------------------------------


def test_a_curve_is_over_epochs() -> None:
    (panel,) = collect(row(2.0, epochs=2)).curves
    assert (panel.title, panel.legend) == ("pydocs, gpt2-nano", "")
    (curve,) = panel.curves
    assert curve.train == ((0.5, 2.2), (1.0, 2.1), (1.5, 2 + 1 / 15), (2.0, 2.05))
    assert curve.val == ((1.0, 3.0), (2.0, 2.0))
    assert panel.loss_range == (2.0, 3.0)


def test_curves_are_named_after_the_fields_that_differ() -> None:
    (panel,) = collect(row(batch_size=4), row(batch_size=8, dropout=0.1), row(batch_size=8, pretrained=False)).curves
    assert panel.legend == "batch size, dropout, pretrained"
    assert [curve.label for curve in panel.curves] == ["4, default, yes", "8, 0.1, yes", "8, default, no"]


def test_each_dataset_has_its_panel_and_its_range_of_losses() -> None:
    found = collect(row(3.0, dataset="imdb"), row(4.0, dataset="wikitext2"), row(5.0, dataset="imdb", seed=1)).curves
    assert [panel.title for panel in found] == ["imdb, gpt2-nano", "wikitext2, gpt2-nano"]
    assert [panel.loss_range for panel in found] == [(3.0, 5.2), (4.0, 4.2)]
    assert [panel.legend for panel in found] == ["seed", ""]


def test_many_curves_are_split_by_model_and_the_best_are_kept() -> None:
    many = [row(9.0 - seed / 10, model="gpt2", seed=seed) for seed in range(9)]
    first, second = collect(*many, row(2.0, model="gpt2-xl")).curves
    assert (first.title, second.title) == ("pydocs, gpt2: best 6 of 9", "pydocs, gpt2-xl")
    assert [curve.label for curve in first.curves] == ["3", "4", "5", "6", "7", "8"]
    assert first.loss_range == second.loss_range
    assert (second.legend, second.curves[0].label) == ("seed", "0")


def test_a_curve_says_where_its_trial_is_not_done_and_leaves_out_what_is_not_finite() -> None:
    stopped = row(4.0, status=DIVERGED, seed=1)
    assert stopped.latest_checkpoint is not None
    stopped.latest_checkpoint.progress.curve.append((10, math.nan))
    (panel,) = collect(row(seed=0), stopped, row(None, status=FAILED, seed=2)).curves
    assert [curve.label for curve in panel.curves] == ["0", "1 (diverged)"]
    assert all(math.isfinite(loss) for curve in panel.curves for _, loss in curve.train)


# ---- val loss against a field -------------------------------------------------------------------------------------


def test_a_line_joins_trials_that_are_equal_in_all_other_fields() -> None:
    grid = [row(n + c / 1024, context_length=c, batch_size=b) for n, b in enumerate((8, 16)) for c in (512, 256)]
    found = collect(*grid, row(context_length=1024, batch_size=8, learning_rate=1e-3))
    (context,) = found.val_loss_by_context_length
    assert (context.title, context.field) == ("pydocs, gpt2-nano", "context_length")
    assert context.legend == "batch size, learning rate"
    assert [line.label for line in context.series] == ["8, 5e-05", "16, 5e-05"]
    assert context.series[0].points == ((256, 0.25), (512, 0.5))
    (batch,) = found.val_loss_by_batch_size
    assert [line.label for line in batch.series] == ["512, 5e-05", "256, 5e-05"]
    assert batch.series[1].points == ((8, 0.25), (16, 1.25))


def test_only_done_rows_count_where_rows_are_compared() -> None:
    statuses = (DIVERGED, FAILED, INTERRUPTED)
    others = [row(context_length=256 * 2**n, status=status) for n, status in enumerate(statuses)]
    found = collect(*others, row(context_length=64), row(None, status=PENDING, context_length=32))
    assert found.val_loss_by_context_length == () and found.parallel_coordinates == ()
    assert len(found.curves[0].curves) == 4


def test_one_value_makes_no_figure() -> None:
    found = collect(row(seed=0), row(seed=1))
    assert found.val_loss_by_context_length == found.val_loss_by_batch_size == ()


# ---- parallel coordinates -----------------------------------------------------------------------------------------


def test_parallel_coordinates_have_an_axis_for_each_field_that_differs() -> None:
    rows = [
        row(3.0, model="gpt2", batch_size=16),
        row(2.0, model="gpt2-xl", batch_size=8),
        row(2.5, model="gpt2", batch_size=64),
    ]
    (panel,) = collect(*rows).parallel_coordinates
    assert [axis.name for axis in panel.axes] == ["model", "batch size", "val loss"]
    assert panel.axes[0].ticks == ((0, "gpt2"), (1, "gpt2-xl"))
    assert panel.axes[1].ticks == ((0, "8"), (0.5, "16"), (1, "64"))
    assert panel.axes[2].ticks == ((0, "2.0"), (0.25, "2.2"), (0.5, "2.5"), (0.75, "2.8"), (1, "3.0"))
    assert panel.coordinates == ((0, 0.5, 1), (1, 0, 0), (0, 1, 0.5))


def test_an_axis_of_many_numbers_is_to_scale() -> None:
    (panel,) = collect(*(row(2.0, learning_rate=10.0**-n) for n in range(9))).parallel_coordinates
    assert [round(line[0], 9) for line in panel.coordinates] == [1 - n / 8 for n in range(9)]
    assert [label for _, label in panel.axes[0].ticks] == ["1e-08", "1e-06", "0.0001", "0.01", "1"]
    assert panel.axes[1].ticks == ((0.5, "2"),)


def test_a_field_that_only_some_set_has_its_default_below_its_numbers() -> None:
    (panel,) = collect(row(dropout=0.2), row(dropout=None), row(dropout=0.1)).parallel_coordinates
    assert panel.axes[0].ticks == ((0, "default"), (0.5, "0.1"), (1, "0.2"))


# ---- time and speed -----------------------------------------------------------------------------------------------


def test_bars_are_of_all_rows_that_were_timed() -> None:
    found = collect(row(seed=0, seconds=4.0), row(None, seed=1), row(seed=2, status=FAILED), row(seed=3, seconds=0.0))
    assert found.training_seconds == figures.BarChart("seed", ("0", "2"), (4.0, 10.0), 0)
    assert found.tokens_per_second == figures.BarChart("seed", ("0", "2"), (250.0, 100.0), 0)


def test_bars_beyond_the_most_are_counted() -> None:
    found = collect(*(row(seed=seed) for seed in range(figures.MAX_BARS + 3))).training_seconds
    assert found is not None and (len(found.labels), found.num_omitted) == (figures.MAX_BARS, 3)


# ---- nothing, and odd things --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, DIVERGED, INTERRUPTED, PENDING])
def test_rows_without_a_checkpoint_make_no_figure(status: str) -> None:
    assert collect(row(None, status=status)) == figures.Figures((), (), (), (), None, None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", "a b"),
        (1.23456e-5, "1.23e-05"),
        ("/data/" + "x" * 30, "…" + "x" * 23),
        (0.1 + 0.2, "0.3"),
        (1024, "1024"),
    ],
)
def test_a_value_in_a_label_is_short(value: Any, shown: str) -> None:
    assert figures.format_field_value(value) == shown


def test_every_figure_is_drawn_the_same_each_time() -> None:
    odd = '$\\frac{<b>&"字'
    rows = [row(3 + c / 512, model=odd, context_length=c, batch_size=b) for c in (256, 512) for b in (8, 16)]
    found = collect(*rows)
    assert found.training_seconds is not None and found.tokens_per_second is not None

    def drawn() -> list[str]:
        assert found.training_seconds is not None and found.tokens_per_second is not None
        panels = [
            plots.plot_loss_curves(found.curves[0]),
            plots.plot_series(found.val_loss_by_context_length[0]),
            plots.plot_series(found.val_loss_by_batch_size[0]),
            plots.plot_parallel_coordinates(found.parallel_coordinates[0]),
            plots.plot_training_time(found.training_seconds),
            plots.plot_tokens_per_second(found.tokens_per_second),
        ]
        return [plots.to_svg(panel) for panel in panels]

    once = drawn()
    assert once == drawn() and all(svg.startswith("<svg") and "<dc:date>" not in svg for svg in once)


def test_one_panel_of_one_loss_is_drawn() -> None:
    (panel,) = collect(row(2.0)).curves
    flat = replace(panel, loss_range=(2.0, 2.0))
    assert plots.to_svg(plots.plot_loss_curves(flat)).rstrip().endswith("</svg>")
