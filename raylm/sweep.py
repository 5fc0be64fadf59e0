"""Entry point of `python -m raylm.sweep FILE`, which is `raylm run FILE`."""

from __future__ import annotations

import typer

from raylm.cli.sweeps import run

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(run)
    app(prog_name="python -m raylm.sweep")
