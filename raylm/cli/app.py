"""The `raylm` command: its verbs, in the order of its help."""

from __future__ import annotations

from typing import Annotated

import typer

from raylm import __version__
from raylm.cli.report import figures, report
from raylm.cli.results import evaluate, export, generate
from raylm.cli.sweeps import cp, doctor, ls, plan, run
from raylm.cli.watch import dashboard, logs, status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        print(f"raylm {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ray Tune sweeps that fine-tune GPT-2 and end in one table.

    raylm ls

    raylm cp quickstart my_sweep.py

    raylm plan my_sweep.py

    raylm run my_sweep.py

    raylm report runs/quickstart
    """


for command in (ls, cp, plan, run, status, logs, dashboard, report, figures, evaluate, generate, export, doctor):
    app.command()(command)
