"""Results in Python: a frame with the types and the values of results.csv, figures that a notebook shows, names."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure
from test_figures import FOLDER, row

from raylm.report import formats
from raylm.report.analysis import Plots, SweepResults
from raylm.report.reference import load_reference
from raylm.results.rows import DIVERGED, FAILED, PENDING
from raylm.results.storage import Folder

ODD = '<b>&"x"'


def found_in(place: Path) -> SweepResults:
    """Rows of several statuses, of two context lengths and batch sizes, in a folder without a record."""
    rows = [row(3 + c / 512, context_length=c, batch_size=b) for c in (256, 512) for b in (8, 16)]
    rows += [row(float("nan"), status=DIVERGED, seed=1), row(None, status=FAILED, model=ODD), row(None, status=PENDING)]
    return SweepResults(Folder(place), rows)


def test_a_frame_says_what_results_csv_says(tmp_path: Path) -> None:
    found = found_in(tmp_path)
    frame = found.to_pandas()
    text = formats.format_csv(found, load_reference())
    assert list(frame.columns) == text.splitlines()[0].split(",")
    read = pandas.read_csv(io.StringIO(text), dtype=dict(frame.dtypes))
    pandas.testing.assert_frame_equal(frame, read)


@pytest.mark.parametrize("rows", [slice(None), slice(-1, None)], ids=["all", "a row without any number"])
def test_a_column_has_its_type_whatever_is_in_it(tmp_path: Path, rows: slice) -> None:
    frame = SweepResults(Folder(tmp_path), found_in(tmp_path).rows[rows]).to_pandas()
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert {kinds[name] for name in ("context_length", "steps", "best_epoch", "max_train_tokens")} == {"Int64"}
    assert {kinds[name] for name in ("val_loss", "learning_rate", "dropout", "reference_val_loss")} == {"Float64"}
    assert {kinds[name] for name in ("pretrained", "recompute", "going_up")} == {"boolean"}
    assert {kinds[name] for name in ("dataset", "run", "status", "reason", "checkpoint")} == {"string"}
    assert frame.iloc[-1][["val_loss", "steps", "recompute", "reason"]].isna().all()


def test_every_figure_of_the_report_is_there_to_plot(tmp_path: Path) -> None:
    found = found_in(tmp_path)
    plotted = {
        "curves": found.plot_curves(),
        "context length": found.plot_context_length(),
        "batch size": found.plot_batch_size(),
        "fields": found.plot_fields(),
        "time": found.plot_time(),
    }
    assert {name: len(plots) for name, plots in plotted.items()} == (
        {"curves": 1, "context length": 1, "batch size": 1, "fields": 1, "time": 2}
    )
    assert all(isinstance(figure, Figure) for plots in plotted.values() for figure in plots)
    assert plotted["curves"]._repr_html_().startswith('<img src="data:image/svg+xml;base64,')
    plotted["curves"][0].savefig(tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    nothing = SweepResults(Folder(FOLDER), [row(None, status=PENDING)])
    assert nothing.plot_curves() == nothing.plot_importance() == Plots()


def test_a_notebook_shows_the_table(tmp_path: Path) -> None:
    shown = found_in(tmp_path)._repr_html_()
    assert shown.count("<tr>") == 7 and "<th>adj val loss</th>" in shown
    assert repr(found_in(tmp_path)) == f"<{tmp_path}: 7 rows: 4 done, 1 diverged, 1 failed, 1 to be done>"
    assert "<b>" not in shown and "&lt;b&gt;&amp;" in shown


NAMES = """
import importlib, sys, raylm
assert "torch" not in sys.modules and {{"run", "load_results"}} <= set(dir(raylm))
{first}
from raylm import Sweep, load_results, run
assert callable(run) and run is raylm.run and callable(load_results), run
try:
    raylm.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("first", ["", "import raylm.runner, raylm.analysis, raylm.cli_sweeps"])
def test_the_packages_own_functions_are_functions_whatever_was_imported_before(first: str) -> None:
    subprocess.run([sys.executable, "-c", NAMES.format(first=first)], check=True)
