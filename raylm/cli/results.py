"""Verbs for the checkpoints of a results folder: `raylm evaluate`, `generate`, `export`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes
from raylm.errors import UserError, WorkError, one_line, safe_repr
from raylm.units import pluralize

if TYPE_CHECKING:
    from raylm.monitor.console import Console
    from raylm.results.rows import Row


def evaluate(
    results_folder: ResultsFolderArgument,
    context_lengths: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens, such as 256,512,1024.")] = "",
    split: Annotated[str, typer.Option(help="validation, or test: at the context length of each row.")] = "validation",
) -> None:
    """Evaluate each best checkpoint at other context lengths or on the test split, and add the columns to the table.

    raylm evaluate runs/quickstart --context-lengths 64,128,256

    raylm evaluate s3://bucket/raylm/imdb-grid --context-lengths 512,1024

    raylm evaluate runs/own-data --split test

    Known values at other context lengths are not computed again.
    """
    with exit_codes("run the same command to resume", "values so far are saved; run the same command to resume"):
        from raylm.monitor.console import Console
        from raylm.report import formats
        from raylm.report.analysis import load_results
        from raylm.report.reference import load_reference
        from raylm.results.rows import DONE

        lengths = _parse_context_lengths(context_lengths, split)
        console, results = Console(), load_results(results_folder)
        results.storage.create("evaluate a copy of the folder")
        with console.show_spinner("loading torch and transformers"):
            from raylm.report import html
            from raylm.training.evaluate import evaluate_lengths, evaluate_test_split
        rows = [row for row in results.rows if row.status == DONE]
        failures = _RowFailures(console, len(rows))
        for row in rows:
            with failures.catch(row):
                if split == "test":
                    test = evaluate_test_split(results, row)
                    loss = f"test loss {test.loss:.3f} ({test.precision})"
                    console.print_note(f"{row.config.run_name}  at {row.config.context_length}: {loss}")
                for evaluation in evaluate_lengths(results, lengths, [row]):
                    loss = f"val loss {evaluation.val_loss:.3f} ({evaluation.precision})"
                    console.print_note(f"{row.config.run_name}  at {evaluation.context_length}: {loss}")
        results, reference_table = load_results(results_folder), load_reference()
        formats.write_tables(results)
        html.write_html(results, reference_table)
        console.print_table(results, reference_table)
        failures.raise_if_any()


def _parse_context_lengths(text: str, split: str) -> list[int]:
    """Return the context lengths to evaluate at, in tokens; empty for the test split.

    Raises:
        UserError: if an option has another value than expected, or they exclude each other.
    """
    if split not in ("validation", "test"):
        raise UserError(f"--split: got {split!r}; expected validation or test")
    if split == "test":
        if text:
            raise UserError("--split test and --context-lengths exclude each other; expected one of them")
        return []
    lengths = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(lengths) < 2:
        raise UserError(f"--context-lengths: got {text!r}; expected tokens, at least 2, as in 256,512")
    return lengths


class _RowFailures:
    """Rows whose best checkpoint could not be used: each is reported in a line, and the others are not affected."""

    def __init__(self, console: Console, num_rows: int) -> None:
        self._console, self._num_rows = console, num_rows
        self._errors: list[Exception] = []

    @contextlib.contextmanager
    def catch(self, row: Row) -> Iterator[None]:
        """Report an error of a row instead of raising it; the error of an only row is raised."""
        try:
            yield
        except (UserError, WorkError, RuntimeError, ValueError) as error:  # RuntimeError, ValueError: of the model
            if self._num_rows == 1 and isinstance(error, (UserError, WorkError)):
                raise
            self._errors.append(error)
            self._console.print_error(f"{row.config.run_name}: {one_line(error)}")

    def raise_if_any(self) -> None:
        """Raise the failure of the command.

        Raises:
            UserError: if every row has failed because of the request.
            WorkError: if a row has failed otherwise.
        """
        if self._errors:
            message = f"{len(self._errors)} of {pluralize(self._num_rows, 'row')} failed"
            is_request = len(self._errors) == self._num_rows and all(isinstance(e, UserError) for e in self._errors)
            raise UserError(message) if is_request else WorkError(message)


def generate(
    results_folder: ResultsFolderArgument,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text that each model continues.")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="NAME", help="Run to sample from; may be repeated; default: all done rows."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens after the prompt.")] = 60,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most likely token.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed; the same seed gives the same text.")] = 0,
) -> None:
    """Sample continuations of a prompt from the best epochs of finished rows, side by side.

    raylm generate runs/quickstart --prompt "The for statement"

    raylm generate runs/imdb-grid --prompt "This film" --temperature 0.8 --seed 1
    """
    with exit_codes("no sample is kept"):
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results
        from raylm.results.rows import DONE

        console, results = Console(), load_results(results_folder)
        rows = [results.get_row(run) for run in runs] if runs else [row for row in results.rows if row.status == DONE]
        if not rows:
            raise UserError(f"{results.storage.uri} has no finished row yet; use --run for an unfinished one")
        for row in rows:
            if row.metrics is None:
                raise UserError(f"{row.config.run_name} ({row.status}) has no evaluated epoch yet")
        with console.show_spinner("loading torch and transformers"):
            from raylm.training.generate import generate_samples
        failures = _RowFailures(console, len(rows))

        def sample(row: Row) -> str:
            options = {"max_new_tokens": max_new_tokens, "seed": seed}
            with failures.catch(row):
                (result,) = generate_samples(results, [row], prompt, temperature=temperature, **options)
                return result.full_text
            return "(failed)"

        console.print_samples((_sample_heading(row) for row in rows), map(sample, rows))
        failures.raise_if_any()


def _sample_heading(row: Row) -> str:
    """Return the heading of a row's sample: its run name and val loss."""
    return row.config.run_name + (f"  val loss {row.metrics.val_loss:.2f}" if row.metrics else "")


def export(
    results_folder: ResultsFolderArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create; may exist if it is empty.")],
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Run to export; default: the best one.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Dataset to take the best trial from, if the sweep has several."),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="License, such as apache-2.0; default: the base model's."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Also upload it to this repository of the Hugging Face Hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Create the Hub repository as public (default: private).")
    ] = False,
) -> None:
    """Write the best epoch of a row as a folder that transformers opens, with a model card.

    raylm export runs/quickstart ./model

    raylm export runs/imdb-grid ./model --run imdb-gpt2-256x8-748cd00041

    raylm export runs/reference-table ./model --dataset imdb --push me/gpt2-imdb
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results

        if run and dataset:
            raise UserError("--run and --dataset exclude each other; expected one of them")
        if public and not push:
            raise UserError("--public requires --push; add --push REPO, or leave --public out")
        if license_id is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
            raise UserError(
                f"--license: got {safe_repr(license_id)}; expected a Hub license id such as apache-2.0 or mit"
            )
        console, results = Console(), load_results(results_folder)
        row = results.get_row(run) if run else results.best(dataset)
        with console.show_spinner(f"exporting {row.config.run_name}" + (f", and uploading to {push}" if push else "")):
            from raylm.report.export import export as export_row

            exported = export_row(results, row, folder, license_id=license_id, repo_id=push, public=public)
        console.print_note(f"model: {folder}" + (f", {exported.url}" if exported.url else ""))
        if exported.license_id is None:
            console.print_note("license: unknown, as the model card says; set one with --license, such as apache-2.0")
