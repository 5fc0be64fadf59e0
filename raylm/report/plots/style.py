"""Style of the drawings, independent of the user's settings, and their files.

Colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind people can distinguish; line
styles and markers differ too, for print in black and white. In SVG, text is drawn as paths and needs no font; in PDF,
fonts are embedded as TrueType.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "X")
INK, GRAY, GRID, PAPER_COLOR = "#1a1a1a", "#555555", "#dddddd", "#ffffff"
"""Colors of text, axes, grid and background, which follow the theme of a page."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", INK)
"""Colors of lines: without yellow, which is hard to see on white."""

FILE_FORMATS = ("pdf", "svg", "png")
METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
"""Metadata to leave out of files, so that the same plot gives the same bytes."""
TRIAL_MARK, LEGEND_MARK, AXIS_MARK = "trials:", "legend:", "axis:"
"""Beginnings of the ids of marked elements in an SVG."""
MARKED_ID = re.compile(rf' id="(?:{TRIAL_MARK}|{LEGEND_MARK}|{AXIS_MARK})[^"]*"')
PNG_DPI = 300


@dataclass(frozen=True)
class Layout:
    """Size of a drawing and of its text."""

    width: float
    """Inches."""
    wide_width: float
    """Width of a drawing that needs more, inches."""
    height: float
    """Height of a plot without its legend, inches."""
    font_size: float
    """Points."""
    small_font_size: float
    """Size of legends and annotations, points."""
    max_line_chars: int
    """Maximum length of a line of text."""
    max_legend_chars: int
    """Maximum length of a row of the legend, with ten characters for each handle."""
    max_bar_label_chars: int
    """Maximum length of a bar's label; in a wide drawing 2.5 times as much."""

    @property
    def row_height(self) -> float:
        """Height of a row of the legend, inches."""
        return 0.02125 * self.small_font_size


PAGE = Layout(4.6, 9.2, 2.9, 8.5, 8, 56, 66, 38)
"""Layout of the page: two plots fit side by side on a desktop and on paper, one on a phone."""
PAPER = Layout(3.3, 6.9, 2.3, 8, 7.5, 38, 46, 24)
"""Layout of a column of a paper; wide drawings take both columns."""

RC_PARAMS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "raylm",
    "pdf.fonttype": 42,  # journals refuse Type 3
    "text.parse_math": False,  # names may contain dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "grid.linewidth": 0.6,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
}


@contextlib.contextmanager
def style_context(layout: Layout = PAGE) -> Iterator[None]:
    """Set matplotlib's defaults with `RC_PARAMS` on top, and restore the user's settings afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box; the table has the name
        matplotlib.rcdefaults()
        sizes = {"font.size": layout.font_size, "axes.titlesize": layout.font_size + 0.5}
        sizes |= dict.fromkeys(("legend.fontsize", "legend.title_fontsize"), layout.small_font_size)
        matplotlib.rcParams.update(RC_PARAMS | sizes)
        yield


def new_figure(alt_text: str, width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure, labelled with its alternative text, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(alt_text)
    return figure, figure.add_subplot()


def get_alt_text(figure: Figure) -> str:
    """Return the alternative text of a plot for people who cannot see it."""
    return str(figure.get_label())


def render(figure: Figure, file_format: str) -> bytes:
    """Return the file of a plot; the same plot gives the same bytes, without date and random names.

    Args:
        figure: plot.
        file_format: one of `FILE_FORMATS`.
    """
    content = _save(figure, file_format)
    return MARKED_ID.sub("", content.decode()).encode() if file_format == "svg" else content


def to_svg(figure: Figure, *, with_marks: bool = False) -> str:
    """Return the SVG of a plot as an element, with or without the ids of marked elements, which are not unique."""
    text = _save(figure, "svg").decode()
    text = text[text.index("<svg") :]
    return text if with_marks else MARKED_ID.sub("", text)


def _save(figure: Figure, file_format: str) -> bytes:
    out = io.BytesIO()
    with style_context():
        figure.savefig(out, format=file_format, metadata=METADATA[file_format], dpi=PNG_DPI)
    return out.getvalue()


def to_data_url(figure: Figure) -> str:
    """Return the SVG as a `data:` URL: a separate image, whose ids cannot collide with those of another."""
    return "data:image/svg+xml;base64," + base64.b64encode(to_svg(figure).encode()).decode()


def add_legend(figure: Figure, axes: Axes, layout: Layout, title: str, labels: Sequence[str]) -> None:
    """Add a legend below the axes; the figure grows by its height."""
    if title:
        title = wrap(title, layout)
        columns = max(1, min(3, len(labels), layout.max_legend_chars // (max(map(len, labels)) + 10)))
        rows = -(-len(labels) // columns) + 1 + title.count("\n")
        figure.set_figheight(figure.get_figheight() + rows * layout.row_height)
        handles, _ = axes.get_legend_handles_labels()
        legend = figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, handlelength=3)
        for number, (text, handle) in enumerate(zip(legend.get_texts(), legend.legend_handles, strict=True)):
            for artist in (text, handle):
                if artist is not None:
                    artist.set_gid(f"{LEGEND_MARK}{number}")


def mark_trials(artist: Artist, number: int, points: Iterable[Sequence[str]]) -> None:
    """Name the trials that an artist shows, for the script of the page.

    Args:
        artist: line or bar.
        number: number of its line in the legend.
        points: run names of each of its points; of a line that is one trial, a single one. The mark has their ids, with
            which they end: a line may stand for thousands.
    """
    ids = ([run.rpartition("-")[2] for run in runs] for runs in points)
    artist.set_gid(f"{TRIAL_MARK}{number}:" + "|".join(map(",".join, ids)))


def mark_axis(artist: Artist, number: int) -> None:
    """Name an axis of parallel coordinates by its number, for the script of the page."""
    artist.set_gid(f"{AXIS_MARK}{number}")


def wrap(text: str, layout: Layout) -> str:
    """Return text in lines that fit a plot."""
    return textwrap.fill(text, layout.max_line_chars)


def unzip_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the coordinates of points."""
    return [x for x, _ in points], [y for _, y in points]


def choose_time_unit(longest: float) -> tuple[str, float]:
    """Return the unit for times up to this one, in seconds, and its length in seconds."""
    return ("h", 3600) if longest >= 3 * 3600 else ("min", 60) if longest >= 3 * 60 else ("s", 1)
