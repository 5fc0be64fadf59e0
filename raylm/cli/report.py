"""Verbs that show a results folder: `raylm report`, `figures`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes
from raylm.errors import UserError, describe_os_error
from raylm.units import pluralize

if TYPE_CHECKING:
    from raylm.report.reference import ReferenceTable
    from raylm.report.select.output import ReportOptions
    from raylm.results.rows import SweepRows

FORMAT_SYNONYMS = {"md": "markdown", "tex": "latex", "text": "table", "txt": "table", "htm": "html"}
"""Other names of formats."""


def report(
    results_folders: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS...", help="Results folder; several are set side by side, with differences."),
    ],
    output_format: Annotated[
        str, typer.Option("--format", help="table, markdown, latex, csv, or html, which writes a file.")
    ] = "table",
    reference: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table to compare with; default: the bundled 21 rows.")
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="A,B,...", help="Columns to show: any of the table or of results.csv.")
    ] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="A=VALUE", help="Only rows with this; also !=, <, <=, >, >=; may be repeated."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="A", help="Column to sort by; -A: descending.")] = "",
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="First N rows; unsorted, the best N of each dataset.")
    ] = None,
    pivot: Annotated[
        str, typer.Option(metavar="ROW,COLUMN[,VALUE]", help="Two-way table; VALUE: the loss that rows are ranked by.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print rows and counts as JSON.")] = False,
) -> None:
    """Show the table of a results folder, finished or not, beside the reference table.

    raylm report runs/quickstart

    raylm report runs/imdb-grid --format latex --pivot model,context_length > table.tex

    raylm report runs/imdb-search --where optimizer=adamw --top 5 --columns model,learning_rate,val_loss

    raylm report runs/imdb-grid --json | jq .best

    raylm report runs/before runs/after
    """
    with exit_codes():
        from raylm.report.analysis import load_results
        from raylm.report.reference import load_reference
        from raylm.report.select.output import TEXT_FORMATS, ReportOptions, format_report, select
        from raylm.report.select.rows import Condition, RowSelection

        output_format = FORMAT_SYNONYMS.get(output_format, output_format)
        formats = ("table", *(name for name in TEXT_FORMATS if name != "json"), "html")
        if output_format not in formats:
            raise UserError(f"--format: got {output_format!r}; expected one of {', '.join(formats)}")
        if as_json and output_format != "table":
            raise UserError(f"--json and --format {output_format} exclude each other; expected one of them")
        if pivot and (columns or output_format == "html"):
            raise UserError(f"--pivot and {'--columns' if columns else '--format html'} exclude each other")
        options = ReportOptions(
            RowSelection(tuple(map(Condition.parse, where or ())), sort, top),
            tuple(name for name in columns.split(",") if name.strip()),
            pivot,
        )
        if len(results_folders) > 1:
            if reference is not None:
                raise UserError("--reference takes one results folder; got several")
            _print_comparison(results_folders, options, "json" if as_json else output_format)
            return
        reference_table = load_reference(reference)
        results = select(load_results(results_folders[0]), options, reference_table)
        if as_json or output_format in TEXT_FORMATS:
            print(format_report(results, "json" if as_json else output_format, options, reference_table), end="")
        elif output_format == "table":
            _print_report(results, options, reference_table)
        else:
            _write_page(results, options, reference_table)


def _print_comparison(folders: list[str], options: ReportOptions, output_format: str) -> None:
    """Print several sweeps side by side.

    Raises:
        UserError: if an option or format is for one sweep only.
    """
    from raylm.monitor.console import Console
    from raylm.report.analysis import load_results
    from raylm.report.select.compare import build_comparison_sheet, compare_sweeps
    from raylm.report.select.output import ReportOptions, format_comparison, select
    from raylm.report.select.rows import RowSelection

    if output_format == "html" or options != ReportOptions(RowSelection(where=options.rows.where)):
        raise UserError("--sort, --top, --columns, --pivot and --format html take one results folder; got several")
    comparison = compare_sweeps([select(load_results(folder), options) for folder in folders])
    if output_format == "table":
        Console().print_sheet(build_comparison_sheet(comparison))
    else:
        print(format_comparison(comparison, output_format), end="")


def _print_report(results: SweepRows, options: ReportOptions, reference: ReferenceTable) -> None:
    """Print the table, the number of rows, and, of a whole sweep, what to try next."""
    from raylm.monitor.console import Console
    from raylm.report import formats
    from raylm.report.advice import build_advice
    from raylm.report.select.output import build_sheet

    console = Console()
    console.print_sheet(build_sheet(results, options, reference))
    console.print_note(formats.format_summary(results))
    for text in build_advice(results) if options.is_whole else []:
        console.print_note(f"next: {text}")


def _write_page(results: SweepRows, options: ReportOptions, reference: ReferenceTable) -> None:
    """Write report.html, or a page of the selection beside it, and print its location."""
    from raylm.report import html
    from raylm.report.select.output import build_selected_table

    table = build_selected_table(results, options, reference)
    name = html.REPORT_FILE if options.is_whole else html.SELECTION_FILE
    try:
        print(html.write_html(results, reference, table=table, name=name))
    except OSError as error:
        problem = f"{name} is not written: {describe_os_error(error)}"
        raise UserError(f"{problem}; leave out --format html, or make the report of a copy of the folder") from None


def figures(
    results_folder: ResultsFolderArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write into; created if it does not exist.")],
    output_format: Annotated[str, typer.Option("--format", help="pdf, svg or png (300 dpi).")] = "pdf",
) -> None:
    """Write each figure of a sweep at the width of a column of a paper, and the data behind it as CSV.

    raylm figures runs/imdb-grid paper/figures

    raylm figures runs/imdb-grid slides --format png
    """
    with exit_codes():
        from raylm.report.analysis import load_results

        if output_format not in ("pdf", "svg", "png"):
            raise UserError(f"--format: got {output_format!r}; expected pdf, svg or png")
        results = load_results(results_folder)

        from raylm.report.plots.files import write_figures

        paths = write_figures(results, folder, output_format)
        for path in paths:
            print(path)
        print(f"{pluralize(len(paths), 'figure')}, each with its data as .csv beside it")
