"""Figures as files for a paper, each with the data behind it as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from raylm.errors import UserError, describe_os_error
from raylm.report.figures.data_files import format_panel_csv
from raylm.report.plots.gallery import DrawnPanel, build_gallery
from raylm.report.plots.style import PAPER, render
from raylm.results.rows import SweepRows


def write_figures(results: SweepRows, folder: Path, file_format: str) -> list[Path]:
    """Write each panel of each figure and its data into a folder; return the drawings.

    Files with the same names are replaced, others stay.

    Args:
        results: rows of any status.
        folder: folder to write into, created if it does not exist.
        file_format: one of `style.FILE_FORMATS`.

    Raises:
        UserError: if no row has a number to draw, or the folder cannot be created.
    """
    panels = list(_name_panels(results))
    if not panels:
        raise UserError(f"{results.storage.uri} has no row with a loss yet, so there is nothing to draw")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {describe_os_error(error)}; choose another folder") from None
    paths = []
    for name, panel in panels:
        path = folder / f"{name}.{file_format}"
        path.write_bytes(render(panel.draw(PAPER), file_format))
        (folder / f"{name}.csv").write_text(format_panel_csv(panel.data), encoding="utf-8", newline="")
        paths.append(path)
    return paths


def _name_panels(results: SweepRows) -> Iterator[tuple[str, DrawnPanel]]:
    """Yield the panels with different names: that of the figure, then the dataset, and the model if there is one."""
    used: dict[str, int] = {}
    for exhibit in build_gallery(results):
        for panel in exhibit.panels:
            subject = panel.title.split(": ")[0].lower()  # without `: best 6 of 9`, which changes as trials end
            name = re.sub(r"[^a-z0-9.]+", "-", f"{exhibit.name}-{subject}").strip("-.")
            used[name] = used.get(name, 0) + 1
            yield name if used[name] == 1 else f"{name}-{used[name]}", panel
