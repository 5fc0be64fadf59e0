"""Results in Python: pandas frames, figures, notebook output, and the names of the package."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure
from sample_rows import FOLDER, sample_row

from raylm.report import formats
from raylm.report.analysis import Plots, Results
from raylm.report.reference import load_reference
from raylm.results.rows import DIVERGED, FAILED, PENDING
from raylm.results.storage import Folder

MODEL = '<b>&"x"'


def sample_results(folder: Path) -> Results:
    """Return rows of several statuses, context lengths and batch sizes, without a record."""
    rows = [sample_row(3 + c / 512, context_length=c, batch_size=b) for c in (256, 512) for b in (8, 16)]
    rows.append(sample_row(float("nan"), status=DIVERGED, seed=1))
    rows += [sample_row(None, status=FAILED, model=MODEL), sample_row(None, status=PENDING)]
    return Results(Folder(folder), rows)


def test_frame_equals_results_csv(tmp_path: Path) -> None:
    results = sample_results(tmp_path)
    frame = results.to_pandas()
    text = formats.format_csv(results, load_reference())
    assert list(frame.columns) == text.splitlines()[0].split(",")
    read = pandas.read_csv(io.StringIO(text), dtype=dict(frame.dtypes))
    pandas.testing.assert_frame_equal(frame, read)


@pytest.mark.parametrize("rows", [slice(None), slice(-1, None)], ids=["all", "a row without any number"])
def test_dtype_does_not_depend_on_the_values(tmp_path: Path, rows: slice) -> None:
    frame = Results(Folder(tmp_path), sample_results(tmp_path).rows[rows]).to_pandas()
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert {dtypes[name] for name in ("context_length", "steps", "best_epoch", "max_train_tokens")} == {"Int64"}
    assert {dtypes[name] for name in ("val_loss", "learning_rate", "dropout", "reference_val_loss")} == {"Float64"}
    assert {dtypes[name] for name in ("pretrained", "recompute", "going_up")} == {"boolean"}
    assert {dtypes[name] for name in ("dataset", "run", "status", "reason", "checkpoint")} == {"string"}
    assert frame.iloc[-1][["val_loss", "steps", "recompute", "reason"]].isna().all()


def test_figures_of_the_report_can_be_plotted(tmp_path: Path) -> None:
    results = sample_results(tmp_path)
    plotted = {
        "curves": results.plot_curves(),
        "context length": results.plot_context_length(),
        "batch size": results.plot_batch_size(),
        "fields": results.plot_fields(),
        "time": results.plot_time(),
    }
    assert {name: len(plots) for name, plots in plotted.items()} == (
        {"curves": 1, "context length": 1, "batch size": 1, "fields": 1, "time": 2}
    )
    assert all(isinstance(figure, Figure) for plots in plotted.values() for figure in plots)
    shown = plotted["curves"]._repr_html_()
    assert shown.startswith('<img src="data:image/svg+xml;base64,') and 'alt="Loss curves, pydocs' in shown
    plotted["curves"][0].savefig(tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    empty = Results(Folder(FOLDER), [sample_row(None, status=PENDING)])
    assert empty.plot_curves() == empty.plot_importance() == Plots()


def test_notebook_shows_the_table(tmp_path: Path) -> None:
    shown = sample_results(tmp_path)._repr_html_()
    assert shown.count("<tr>") == 7 and "<th>adj val loss</th>" in shown
    assert repr(sample_results(tmp_path)) == f"<{tmp_path}: 7 rows: 4 done, 1 diverged, 1 failed, 1 remaining>"
    assert "<b>" not in shown and "&lt;b&gt;&amp;" in shown


PUBLIC_NAMES = Path(__file__).resolve().parents[1] / "programs" / "public_names.py"


@pytest.mark.parametrize("modules", [[], ["raylm.runner", "raylm.report.analysis", "raylm.cli.sweeps"]])
def test_public_names_do_not_depend_on_earlier_imports(modules: list[str]) -> None:
    subprocess.run([sys.executable, str(PUBLIC_NAMES), *modules], check=True)
