"""report.html: a results folder as one self-contained page for browsers, phones and print."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2
from matplotlib.figure import Figure

from raylm.config.sweep_file import format_sweep_file
from raylm.report import formats
from raylm.report.advice import build_advice
from raylm.report.page_rows import build_page_rows, find_detail_column
from raylm.report.plots import gallery, inline, style
from raylm.report.reference import ReferenceTable, load_reference
from raylm.report.tables.cells import RISING_LOSS
from raylm.report.tables.groups import sort_rows
from raylm.report.tables.table import Table, build_table
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, PENDING, QUEUED, RUNNING, SweepRows
from raylm.results.sweep_record import DataRecord, LaunchRecord, SweepRecord

REPORT_FILE = REPORT_TEMPLATE = "report.html"
SELECTION_FILE = "report-selection.html"
"""File of a report of selected rows or columns."""

NEXT_RUN_NOTES = {
    INTERRUPTED: "the next run resumes it from its last checkpoint",
    PENDING: "the next run starts it",
}
"""Notes on rows that have no reason of their own, by status."""

DEFINITIONS = {
    "train loss": "training loss summed over the epoch, divided by its tokens: nats per token; each batch is measured "
    "before its own optimizer step",
    "val loss": "negative log-likelihood of the validation split, divided by its tokens, each counted once: nats per "
    "token",
    "adj val loss": "val loss × tokens / words of the validation split: nats per word of the original text, "
    "where a word is text between white space; comparable between tokenizers on one text with spaces",
    "nats per byte": "val loss × tokens / bytes of the validation split in UTF-8: comparable between tokenizers on one "
    "text, with spaces or without",
    "best epoch": "epoch with the lowest val loss, counted from 1; a row shows the losses of its best epoch",
    "context len": "length of a window, in tokens",
    "batch size": "windows per optimizer step, independent of the micro-batch that the device's memory allows",
    RISING_LOSS: "the training loss at the end is higher than its minimum by more than noise",
    "val at": "val loss of the best checkpoint at another context length, in tokens",
    "n, ±": "number of done seeds, and half the width of the 95 % confidence interval of their mean (Student's t)",
    "ref, diff": "loss in the reference table, and this table's loss minus the reference's",
    "training time": "time in optimizer steps, without evaluations and checkpoints",
    "tokens per second": "training tokens divided by the training time",
    DIVERGED: "a loss was not finite: the trial has ended and is not ranked",
}
DEFINITION_COLUMNS = {"nats per byte": "nats per byte", "val at": "val at", "n, ±": "n", "ref, diff": "ref"}
"""Definitions that depend on the table's columns, with the beginning of the column's name."""


@dataclass(frozen=True)
class Plot:
    """Panel as an element of the page."""

    svg: str
    """SVG element."""
    is_wide: bool = False
    """True if the plot takes the full width of the page."""


@dataclass(frozen=True)
class Section:
    """Figure of one or more panels."""

    name: str
    title: str
    caption: str
    plots: tuple[Plot, ...]

    @property
    def is_narrow(self) -> bool:
        """True if the section takes half the width of the page."""
        return len(self.plots) == 1 and not self.plots[0].is_wide


def write_html(
    results: SweepRows,
    reference: ReferenceTable | None = None,
    *,
    table: Table | None = None,
    name: str = REPORT_FILE,
) -> str:
    """Write report.html into the results folder, unless it is up to date; return its location.

    Args:
        results: rows of any status.
        reference: table to compare with; None: the one packaged with raylm.
        table: table of the page; None: that of the rows.
        name: name of the file.
    """
    text = render_html(results, reference or load_reference(), table=table)
    if not results.storage.has_text(name, text):
        results.storage.write(name, text)
    return results.storage.uri_of(name)


def render_html(
    results: SweepRows,
    reference: ReferenceTable | None = None,
    template_name: str = REPORT_TEMPLATE,
    *,
    table: Table | None = None,
    **context: object,
) -> str:
    """Return the page; the same results folder gives the same text.

    Args:
        results: rows of any status.
        reference: table to compare with; None: no comparison.
        template_name: the report's template, or one that extends it.
        table: table of the page; None: that of the rows.
        context: further variables of the template.
    """
    record = results.record or SweepRecord(results.storage.name, [])
    precision = results.launches[-1].precision if results.launches else "auto"
    table = table or build_table(results, reference)
    return render_template(
        template_name,
        name=record.name,
        summary=formats.format_summary(results),
        columns=table.columns,
        rows=build_page_rows(table, formats.build_records(results, reference)),
        detail_column=find_detail_column(table.columns),
        has_files=template_name == REPORT_TEMPLATE,
        best_by=_format_measures(results),
        precisions=_format_precisions(results),
        advice=build_advice(results),
        notes=[*table.notes, *_unfinished_notes(results)],
        sections=build_sections(gallery.build_gallery(results)),
        launches=_group_launches(results.launches),
        datasets=_unique_datasets(results.launches),
        definitions=_select_definitions(table),
        sweep_file=f"{record.name.replace('-', '_')}.py",
        sweep_code=format_sweep_file(record.name, [row.config for row in results.rows], precision),
        **context,
    )


def render_template(template_name: str, **context: object) -> str:
    """Return a template with its variables, all of them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raylm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["css_string"] = _to_css_string
    return environment.get_template(template_name).render(**context)


def _to_css_string(text: str) -> str:
    """Return text as a string of a style sheet, in which an entity of HTML means nothing and `<` could end it."""
    return '"' + re.sub(r"[^\w .,:()%/+-]", lambda match: f"\\{ord(match[0]):x} ", text) + '"'


def _format_measures(results: SweepRows) -> str:
    """Return the losses that best rows have the lowest of."""
    return " or ".join(dict.fromkeys(measure.name for measure in results.measures.values()))


def _format_precisions(results: SweepRows) -> str:
    """Return the precisions that the table's losses were evaluated in; empty if they are not known."""
    precisions = {results.find_precision(row) for row in results.rows}
    for row in results.rows:
        precisions |= {*row.length_precisions.values(), row.test_precision, row.zero_shot_precision}
    return " and ".join(sorted(precision for precision in precisions if precision))


def _unfinished_notes(results: SweepRows) -> list[str]:
    """Return notes on rows without a reason of their own: unfinished ones, or ended without a record of why."""
    rows = [row for row in sort_rows(results) if row.status not in (DONE, RUNNING, QUEUED) and not row.reason]
    return [
        f"{row.config.run_name} {row.status}: {NEXT_RUN_NOTES.get(row.status, 'no reason is recorded')}" for row in rows
    ]


def _select_definitions(table: Table) -> dict[str, str]:
    """Return the definitions of the terms on the page."""
    return {
        term: definition
        for term, definition in DEFINITIONS.items()
        if any(name.startswith(DEFINITION_COLUMNS.get(term, "")) for name in table.column_names)
    }


# ---- figures ------------------------------------------------------------------------------------------------------


def build_sections(exhibits: Iterable[gallery.Exhibit]) -> list[Section]:
    """Return the figures, drawn."""
    return [
        Section(
            exhibit.name,
            exhibit.title,
            exhibit.caption,
            tuple(
                _render_plot(panel.draw(), f"{exhibit.name}-{number}") for number, panel in enumerate(exhibit.panels)
            ),
        )
        for exhibit in exhibits
    ]


def _render_plot(figure: Figure, name: str) -> Plot:
    return Plot(inline.to_inline_svg(figure, name), figure.get_figwidth() > style.PAGE.width)


# ---- launches -----------------------------------------------------------------------------------------------------


def _group_launches(launches: Sequence[LaunchRecord]) -> list[dict[str, str]]:
    """Return the environment of each launch; launches that differ in their time only are one group."""
    groups: dict[str, dict[str, str]] = {}
    for launch in launches:
        environment = {
            name.replace("_", " "): formats.to_plain_text(value)
            for name, value in dataclasses.asdict(launch).items()
            if name not in ("number", "started", "data", "slot")
        }
        group = groups.setdefault(str(environment), {"launch": "", "started": "", **environment})
        for name, value in (("launch", launch.number), ("started", launch.started or "–")):
            group[name] += f"{', ' if group[name] else ''}{value}"
    return list(groups.values())


def _unique_datasets(launches: Sequence[LaunchRecord]) -> list[DataRecord]:
    """Return the datasets of all launches without repetitions."""
    return list(dict.fromkeys(data for launch in launches for data in launch.data))
