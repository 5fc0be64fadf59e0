"""Reports as text: the selected rows and columns, or a two-way table, in each format."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylm.report import formats, json_output, latex
from raylm.report.reference import ReferenceTable
from raylm.report.select.columns import select_columns, select_record_columns
from raylm.report.select.compare import Comparison, build_comparison_sheet
from raylm.report.select.paper import build_paper_sheet
from raylm.report.select.pivot import build_pivot, build_pivot_sheet
from raylm.report.select.rows import Record, RowSelection, RowsT, select_rows
from raylm.report.tables.columns import RUN_COLUMN
from raylm.report.tables.sheet import Sheet
from raylm.report.tables.table import Table, build_table
from raylm.results.rows import SweepRows

TEXT_FORMATS = ("markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class ReportOptions:
    """Parts of a report to show."""

    rows: RowSelection = field(default_factory=RowSelection)
    columns: tuple[str, ...] = ()
    """Columns in their order; empty: the table's own."""
    pivot: str = ""
    """`ROW,COLUMN` or `ROW,COLUMN,VALUE` of a two-way table; empty: a line per trial."""

    @property
    def is_whole(self) -> bool:
        """True if everything is shown."""
        return self == ReportOptions()


def select(results: RowsT, options: ReportOptions, reference: ReferenceTable | None = None) -> RowsT:
    """Return the selected rows of a sweep.

    Raises:
        UserError: if a column does not exist, or no row is left.
    """
    return select_rows(results, options.rows, index_records(results, reference))


def index_records(results: SweepRows, reference: ReferenceTable | None) -> dict[str, Record]:
    """Return the values of each row by trial id."""
    return {record["trial_id"]: record for record in formats.build_records(results, reference)}


def build_selected_table(results: SweepRows, options: ReportOptions, reference: ReferenceTable | None = None) -> Table:
    """Return the table with the selected columns.

    Args:
        results: selected rows.
        options: columns to show.
        reference: table to compare with.
    """
    return select_columns(build_table(results, reference), options.columns, index_records(results, reference))


def build_sheet(results: SweepRows, options: ReportOptions, reference: ReferenceTable | None = None) -> Sheet:
    """Return what a terminal or Markdown shows of the selected rows: a two-way table or a line per trial."""
    if options.pivot:
        return build_pivot_sheet(build_pivot(results, options.pivot, index_records(results, reference)))
    table = build_selected_table(results, options, reference)
    if RUN_COLUMN in table.columns:  # whose cells say which row is the best
        return Sheet(table.columns, table.rows, table.notes, best_rows=tuple(table.is_best))
    best = {(row, column) for row, column in build_paper_sheet(table, results).bold if column < len(table.columns)}
    return Sheet(table.columns, table.rows, table.notes, frozenset(best))


def format_report(
    results: SweepRows, text_format: str, options: ReportOptions, reference: ReferenceTable | None = None
) -> str:
    """Return a report as text.

    Args:
        results: selected rows.
        text_format: one of `TEXT_FORMATS`.
        options: columns to show, or the two-way table.
        reference: table to compare with.

    Raises:
        UserError: if a column does not exist.
    """
    if text_format == "latex":
        if options.pivot:
            return latex.format_sheet(build_sheet(results, options, reference))
        return latex.format_sheet(build_paper_sheet(build_selected_table(results, options, reference), results))
    if text_format == "markdown":
        return formats.format_markdown_sheet(build_sheet(results, options, reference))
    pivot = (
        build_pivot(results, options.pivot, index_records(results, reference)).as_records() if options.pivot else None
    )
    records = pivot or select_record_columns(formats.build_records(results, reference), options.columns)
    if text_format == "csv":
        return formats.format_csv_records(records)
    return json_output.format_report_json(results, reference, records) + "\n"


def format_comparison(comparison: Comparison, text_format: str) -> str:
    """Return several sweeps side by side as text, in one of `TEXT_FORMATS`."""
    if text_format == "latex":
        return latex.format_sheet(build_comparison_sheet(comparison))
    if text_format == "markdown":
        return formats.format_markdown_sheet(build_comparison_sheet(comparison))
    if text_format == "csv":
        return formats.format_csv_records(comparison.as_records())
    content = {"sweeps": comparison.labels, "rows": comparison.as_records(), "notes": comparison.notes}
    return json_output.dump_json(content) + "\n"
