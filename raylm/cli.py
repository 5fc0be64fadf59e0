"""The command `raylm`: its verbs, one by one in the order of its help."""

from __future__ import annotations

from typing import Annotated

import typer

from raylm import __version__
from raylm.cli_results import evaluate, report
from raylm.cli_sweeps import doctor, plan, run
from raylm.cli_watching import dashboard, logs, status

app = typer.Typer(
    help="Ray Tune sweeps that fine-tune GPT-2 and end in one table.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"raylm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Ray Tune sweeps that fine-tune GPT-2 and end in one table."""


for command in (run, plan, status, logs, dashboard, report, evaluate, doctor):
    app.command()(command)
