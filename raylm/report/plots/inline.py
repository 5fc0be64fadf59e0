"""Plots as SVG elements of a page: unique ids, marked trials for the page's script, and colors of its theme."""

from __future__ import annotations

import html
import re
from collections import Counter

from matplotlib.figure import Figure

from raylm.report.plots.style import (
    AXIS_MARK,
    COLORS,
    GRAY,
    GRID,
    INK,
    LEGEND_MARK,
    PAPER_COLOR,
    TRIAL_MARK,
    get_alt_text,
    to_svg,
)

THEME = {INK: "ink", GRAY: "quiet", GRID: "grid", PAPER_COLOR: "paper"}
THEME |= {color: f"series-{number}" for number, color in enumerate(COLORS) if color not in THEME}
"""CSS variables of the page (without `--`) by the colors of drawings that they replace."""

METADATA = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
SIZE = re.compile(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"')
MARK = re.compile(rf'<g id="({TRIAL_MARK}|{LEGEND_MARK}|{AXIS_MARK})([^"]*)">(?:\s*<!-- (.*?) -->)?')
COMMENT, SPACE = re.compile(r"<!--.*?-->", re.DOTALL), re.compile(r"\s*\n\s*")
REFERENCE = re.compile(r'( id="|xlink:href="#|url\(#)')
COORDINATES, DECIMALS = re.compile(r' (?:d|x|y)="[^"]*"'), re.compile(r"\d+\.\d{3,}")
"""Attributes with coordinates, in units of a CSS pixel or more, and numbers with more decimals than a screen shows."""
STYLE = re.compile(r' style="([^"]*)"')
COLOR = re.compile(rf"(?:{'|'.join(THEME)})(?=[;\"])", re.IGNORECASE)


MIN_SHARED_STYLES = 100
"""Elements with the same style for which it is a class."""


def to_inline_svg(figure: Figure, prefix: str) -> str:
    """Return a plot as an `<svg>` element of a page.

    Args:
        figure: plot, whose lines may be marked with `style.mark_trials`.
        prefix: prefix of all its ids, unique on the page.
    """
    text = SIZE.sub(r"\1", METADATA.sub("", to_svg(figure, with_marks=True)), count=1)
    text = COMMENT.sub("", MARK.sub(_format_mark, text))
    text = REFERENCE.sub(rf"\g<1>{prefix}-", text)
    text = COLOR.sub(lambda match: f"var(--{THEME_BY_LOWER[match[0].lower()]},{match[0]})", text)
    text = COORDINATES.sub(lambda match: DECIMALS.sub(lambda number: f"{float(number[0]):.2f}", match[0]), text)
    text = _share_styles(text, prefix)
    label = html.escape(get_alt_text(figure))
    return SPACE.sub(" ", text.replace("<svg ", f'<svg role="group" aria-label="{label}" ', 1))


def _share_styles(text: str, prefix: str) -> str:
    """Return an SVG element in which styles of many elements are classes: of thousands of lines, most of the page."""
    counts = Counter(STYLE.findall(text))
    names = {css: f"{prefix}-s{n}" for n, (css, number) in enumerate(counts.items()) if number >= MIN_SHARED_STYLES}
    if not names:
        return text
    text = STYLE.sub(lambda match: f' class="{names[match[1]]}"' if match[1] in names else match[0], text)
    rules = "".join(f".{name} {{{css}}}" for css, name in names.items())
    return text.replace(">", f"><style>{rules}</style>", 1)


THEME_BY_LOWER = {color.lower(): name for color, name in THEME.items()}


def _format_mark(match: re.Match[str]) -> str:
    """Return the opening tag of a marked element, with what it stands for as attributes."""
    kind, value, text = match.groups()
    if kind == LEGEND_MARK:
        label = f' aria-label="{html.escape(html.unescape(text))}"' if text else ""
        return f'<g class="legend" data-line="{value}"{label}>'
    if kind == AXIS_MARK:
        return f'<g class="axis" data-axis="{value}">'
    number, _, points = value.partition(":")
    trials = " ".join(dict.fromkeys(re.split("[|,]", points)))
    attributes = f'data-line="{number}" data-trials="{trials}"'
    if "|" in points:
        attributes += f' data-points="{points.replace(",", " ")}"'
    return f'<g class="mark" {attributes}>'
