"""Verbs that show a results folder: `raylm report`, `figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes
from raylm.errors import UserError, describe_os_error
from raylm.units import pluralize

FORMAT_SYNONYMS = {"md": "markdown", "tex": "latex", "text": "table", "txt": "table", "htm": "html"}
"""Other names of formats."""


def report(
    results_folder: ResultsFolderArgument,
    output_format: Annotated[
        str, typer.Option("--format", help="table, markdown, latex, csv, or html, which writes a file.")
    ] = "table",
    reference: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table to compare with; default: the bundled 21 rows.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows and counts as JSON.")] = False,
) -> None:
    """Show the table of a results folder, finished or not, beside the reference table.

    raylm report runs/quickstart

    raylm report runs/imdb-grid --format latex > table.tex

    raylm report runs/imdb-grid --json | jq .best
    """
    with exit_codes():
        from raylm.report import formats
        from raylm.report.analysis import load_results
        from raylm.report.reference import load_reference

        texts = {"markdown": formats.format_markdown, "latex": formats.format_latex, "csv": formats.format_csv}
        output_format = FORMAT_SYNONYMS.get(output_format, output_format)
        if output_format not in ("table", "html", *texts):
            raise UserError(f"--format: got {output_format!r}; expected one of table, {', '.join(texts)}, html")
        if as_json and output_format != "table":
            raise UserError(f"--json and --format {output_format} exclude each other; expected one of them")
        reference_table = load_reference(reference)
        results = load_results(results_folder)
        if as_json:
            from raylm.report.json_output import format_report_json

            print(format_report_json(results, reference_table))
        elif output_format == "table":
            from raylm.monitor.console import Console
            from raylm.report.advice import build_advice

            console = Console()
            console.print_table(results, reference_table)
            console.print_note(formats.format_summary(results))
            for text in build_advice(results):
                console.print_note(f"next: {text}")
        elif output_format == "html":
            from raylm.report import html

            try:
                print(html.write_html(results, reference_table))
            except OSError as error:
                problem = f"report.html is not written: {describe_os_error(error)}"
                raise UserError(
                    f"{problem}; leave out --format html, or make the report of a copy of the folder"
                ) from None
        else:
            print(texts[output_format](results, reference_table), end="")


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
