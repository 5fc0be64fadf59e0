"""The verbs for a results folder: `raylm report`, `evaluate`, `generate`, `export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes
from raylm.errors import UserError, safe_repr

if TYPE_CHECKING:
    from raylm.results.rows import Row


def report(
    results_folder: ResultsFolderArgument,
    output_format: Annotated[
        str, typer.Option("--format", help="table, markdown, latex, csv, or html: a file.")
    ] = "table",
    reference: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table to compare with; default: the 21 rows that raylm ships.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON for scripts.")] = False,
) -> None:
    """Show the table of a results folder, finished or not, beside the reference where that has the row.

    raylm report runs/quickstart

    raylm report runs/imdb-grid --format latex > table.tex

    raylm report runs/imdb-grid --json | jq .best
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report import formats as reporting
        from raylm.report.advice import build_advice
        from raylm.report.analysis import load_results
        from raylm.report.reference import load_reference

        texts = {"markdown": reporting.format_markdown, "latex": reporting.format_latex, "csv": reporting.format_csv}
        if output_format not in ("table", "html", *texts):
            raise UserError(f"--format: got {output_format!r}; expected one of table, {', '.join(texts)}, html")
        if as_json and output_format != "table":
            raise UserError(f"--json and --format {output_format}: expected one of them")
        known = load_reference(reference)
        found = load_results(results_folder)
        if as_json:
            from raylm.report.json_output import format_report_json

            print(format_report_json(found, known))
        elif output_format == "table":
            screen = Console()
            screen.print_table(found, known)
            screen.print_note(reporting.format_summary(found))
            for text in build_advice(found):
                screen.print_note(f"next: {text}")
        elif output_format == "html":
            from raylm.report import html

            print(html.write_html(found, known))
        else:
            print(texts[output_format](found, known), end="")


def evaluate(
    results_folder: ResultsFolderArgument,
    context_lengths: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens, as 256,512,1024.")],
) -> None:
    """Evaluate each best checkpoint at other context lengths, and add the columns to the table.

    raylm evaluate runs/quickstart --context-lengths 64,128,256

    raylm evaluate s3://bucket/raylm/imdb-grid --context-lengths 512,1024

    What is known already is not computed again.
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report import formats as reporting
        from raylm.report.analysis import load_results
        from raylm.report.reference import load_reference

        lengths = [int(text) if text.strip().isdecimal() else 0 for text in context_lengths.split(",")]
        if min(lengths) < 2:
            raise UserError(f"--context-lengths: got {context_lengths!r}; expected tokens, at least 2, as in 256,512")
        screen, found = Console(), load_results(results_folder)
        with screen.show_spinner("loading torch and transformers"):
            from raylm.report import html
            from raylm.training.evaluate import evaluate_lengths as evaluated
        for one in evaluated(found, lengths):
            screen.print_note(f"{one.config.run_name}  at {one.context_length}: val loss {one.val_loss:.3f}")
        found, known = load_results(results_folder), load_reference()
        reporting.write_tables(found)
        html.write_html(found, known)
        screen.print_table(found, known)


def generate(
    results_folder: ResultsFolderArgument,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What each model goes on from.")],
    runs: Annotated[
        list[str] | None, typer.Option("--run", metavar="NAME", help="Of this run; may be repeated; default: all done.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after the prompt, at most.")] = 60,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same words.")] = 0,
) -> None:
    """Show what the best epochs of finished rows write after a prompt, side by side.

    raylm generate runs/quickstart --prompt "The for statement"

    raylm generate runs/imdb-grid --prompt "This film" --temperature 0.8 --seed 1
    """
    with exit_codes("no sample is kept"):
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results
        from raylm.results.rows import DONE

        screen, found = Console(), load_results(results_folder)
        rows = [found.get_row(run) for run in runs] if runs else [row for row in found.rows if row.status == DONE]
        if not rows:
            raise UserError(f"{found.storage.uri} has no finished row yet; --run names one that is not finished")
        for row in rows:
            if row.metrics is None:
                raise UserError(f"{row.config.run_name} ({row.status}) has no evaluated epoch yet")
        with screen.show_spinner("loading torch and transformers"):
            from raylm.training.generate import generate_samples as generated
        samples = generated(found, rows, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        screen.print_samples((_sample_heading(row) for row in rows), (sample.full_text for sample in samples))


def _sample_heading(row: Row) -> str:
    """A row above its sample."""
    assert row.metrics is not None
    return f"{row.config.run_name}  val loss {row.metrics.val_loss:.2f}"


def export(
    results_folder: ResultsFolderArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or empty.")],
    run: Annotated[str | None, typer.Option(metavar="NAME", help="The row of this run.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The row with the lowest adj val loss: the default.")] = False,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of which the best row is taken, where there are several.")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="As apache-2.0; default: that of the model that was fine-tuned."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload it to this repository of the Hugging Face Hub too.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let all see a repository that is made for it; default: you alone.")
    ] = False,
) -> None:
    """Write the best epoch of a row as a folder that transformers opens, with a model card.

    raylm export runs/quickstart ./model

    raylm export runs/imdb-grid ./model --run imdb-gpt2-256x8-1a6acfc12d

    raylm export runs/reference-table ./model --best --dataset imdb --push me/gpt2-imdb
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results

        if run and (best or dataset):
            raise UserError("--run names the row; expected it without --best and --dataset")
        if public and not push:
            raise UserError("--public is for --push; expected both or neither")
        if license_id is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
            raise UserError(
                f"--license: got {safe_repr(license_id)}; expected the hub's name of it, as apache-2.0 or mit"
            )
        screen, found = Console(), load_results(results_folder)
        row = found.get_row(run) if run else found.best(dataset)
        with screen.show_spinner(f"writing {row.config.run_name}" + (f", and to {push}" if push else "")):
            from raylm.report.export import export as exported

            made = exported(found, row, folder, license_id=license_id, repo_id=push, public=public)
        screen.print_note(f"model: {folder}" + (f", {made.url}" if made.url else ""))
        if made.license_id is None:
            screen.print_note(
                "licence: not known, and the card says so; name it with --license, as --license apache-2.0"
            )
