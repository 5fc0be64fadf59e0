"""Figures as files: legible at the width of a column, reproducible, with the data behind each."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from matplotlib.text import Text
from sample_rows import FOLDER, sample_row
from typer.testing import CliRunner

from raylm import UserError, load_results
from raylm.cli.app import app
from raylm.report.plots.files import write_figures
from raylm.report.plots.gallery import build_gallery
from raylm.report.plots.style import PAPER
from raylm.results.rows import DIVERGED, FAILED, SweepRows
from raylm.results.storage import Folder

OLD_RESULTS = Path(__file__).resolve().parents[1] / "data" / "old_results"


def sample_results() -> SweepRows:
    rows = [
        sample_row(
            3 + number / 8, model=model, context_length=length, dataset="a/long-name-of-a-dataset.txt", seconds=s
        )
        for number, (model, length, s) in enumerate(
            [("gpt2", 256, 9.0), ("gpt2", 512, 11.0), ("owner/some-model-with-a-long-name", 256, 30.0)]
        )
    ]
    diverged = sample_row(
        9.0, status=DIVERGED, dataset=rows[0].config.dataset, model=rows[2].config.model, context_length=512
    )
    return SweepRows(Folder(FOLDER), [*rows, diverged])


def test_text_is_legible_and_inside_the_figure() -> None:
    names = set()
    for exhibit in build_gallery(sample_results()):
        for panel in exhibit.panels:
            names.add(exhibit.name)
            figure = panel.draw(PAPER)
            assert figure.get_figwidth() in (3.3, 6.9)
            figure.draw_without_rendering()
            box = figure.get_tightbbox()
            assert box.x0 > -0.02 and box.x1 < figure.get_figwidth() + 0.02, panel.title
            assert box.y0 > -0.02 and box.y1 < figure.get_figheight() + 0.02, panel.title
            sizes = [float(text.get_fontsize()) for text in figure.findobj(Text) if isinstance(text, Text)]
            assert min(sizes) >= 7
    assert names == {
        "loss-curves", "val-loss-by-model", "val-loss-by-context-length", "heat-map", "parallel-coordinates",
        "val-loss-against-training-time", "speed",
    }  # fmt: skip


@pytest.mark.parametrize("file_format", ["pdf", "svg"])
def test_same_results_give_the_same_files(tmp_path: Path, file_format: str) -> None:
    results = SweepRows(Folder(FOLDER), [sample_row(2.0), sample_row(3.0, learning_rate=1e-3)])
    paths = write_figures(results, tmp_path / "new" / "a", file_format)
    again = write_figures(results, tmp_path / "b", file_format)
    assert [path.name for path in paths] == [path.name for path in again]
    assert all(first.read_bytes() == second.read_bytes() for first, second in zip(paths, again, strict=True))
    assert f"val-loss-by-learning-rate-pydocs-gpt2-nano.{file_format}" in {path.name for path in paths}
    if file_format == "pdf":
        content = paths[0].read_bytes()
        assert re.search(rb"/MediaBox \[ 0 0 237\.6 ", content) and b"/Type3" not in content


def test_data_of_each_figure_is_beside_it(tmp_path: Path) -> None:
    results = sample_results()
    paths = write_figures(results, tmp_path, "svg")
    tables = {path.stem: list(csv.DictReader(path.with_suffix(".csv").open())) for path in paths}
    prefix = "long-name-of-a-dataset.txt"
    (grid,) = (lines for name, lines in tables.items() if name.startswith("heat-map"))
    assert [(cell["adj val loss"], cell["status"]) for cell in grid] == [
        ("3.0", ""), ("3.125", ""), ("3.25", ""), ("", "diverged")
    ]  # fmt: skip
    (tradeoff,) = (lines for name, lines in tables.items() if name.startswith("val-loss-against-training-time"))
    assert [line["on front"] for line in tradeoff] == ["True", "False", "False"]
    (curves,) = (lines for name, lines in tables.items() if name.startswith("loss-curves"))
    assert {line["run"] for line in curves} == {row.config.run_name for row in results.rows}
    assert all(prefix[4:] in name or name.startswith("speed") for name in tables)


def test_command_writes_figures_of_old_results_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["figures", str(OLD_RESULTS), str(tmp_path / "figures"), "--format", "png"])
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(written) == 2 * int(re.findall(r"(\d+) figures?, each", done.output)[0])
    assert CliRunner().invoke(app, ["figures", str(OLD_RESULTS), str(tmp_path), "--format", "eps"]).exit_code == 2
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder"):
        write_figures(load_results(OLD_RESULTS), tmp_path / "file", "pdf")
    with pytest.raises(UserError, match="no row with a loss yet"):
        write_figures(SweepRows(Folder(FOLDER), [sample_row(None, status=FAILED)]), tmp_path, "pdf")
