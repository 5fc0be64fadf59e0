"""The verbs to watch a sweep from another terminal, running or not: `raylm status`, `logs`, `dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from raylm.cli.common import ResultsFolder, exit_codes


def status(
    results_folder: ResultsFolder,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Until the command that runs it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how a sweep stands, from another terminal too: what runs, the time left, the best so far.

    raylm status runs/imdb-grid --watch
    """
    with exit_codes("the sweep goes on"):
        import dataclasses
        import json
        import time

        from raylm.monitor import heartbeat
        from raylm.monitor.console import Screen
        from raylm.monitor.state import at_rest
        from raylm.report import formats as reporting
        from raylm.report.analysis import load_results

        screen, found = Screen(), load_results(results_folder)
        told = heartbeat.read(found.storage)
        if follow and told and told.alive:
            with screen.redrawn() as show:
                while told and told.alive:
                    show(told.state)
                    time.sleep(heartbeat.SECONDS)
                    told = heartbeat.read(found.storage)
            found = load_results(results_folder)
        alive = bool(told and told.alive)
        state = told.state if told and told.alive else at_rest(found)
        if as_json:
            who = {"process": told.process, "host": told.host} if told else {}
            print(json.dumps({"alive": alive, **who, **dataclasses.asdict(state)}, indent=2))
        else:
            notes = [] if alive else [reporting.summary(found)]
            screen.status(state, [*([told.words] if told else []), *notes, *reporting.places(found)])


def dashboard(
    results_folder: ResultsFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0: any that is free.")] = 8700,
) -> None:
    """Serve a page of a sweep to a browser on this machine, which refreshes while the sweep runs.

    raylm dashboard runs/imdb-grid
    """
    with exit_codes():
        import contextlib

        from raylm.monitor.console import Screen
        from raylm.monitor.dashboard import Dashboard, Server
        from raylm.report.analysis import load_results

        found = load_results(results_folder)
        with Server(Dashboard(found.storage), port) as server, contextlib.suppress(KeyboardInterrupt):
            Screen().say(f"{found.storage.place}: {server.address} (Ctrl-C ends it)")
            server.serve_forever()


def logs(
    results_folder: ResultsFolder,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name in the table, how that begins, or its id.")],
) -> None:
    """Show what a trial has printed in all its attempts: warnings, evaluations, errors with where they were raised.

    raylm logs runs/imdb-grid imdb-gpt2-256x8
    """
    with exit_codes():
        from raylm.monitor.console import Screen
        from raylm.report.analysis import load_results
        from raylm.results import logs as kept

        found = load_results(results_folder)
        row = kept.row_of(found, run)
        for name, text in kept.of(found, row):
            print(f"==> {found.storage.where(name)} <==\n{text}")
        Screen().say(f"{row.config.run_name}  {row.status}{': ' + row.reason if row.reason else ''}")
