"""The verbs to watch a sweep from another terminal, running or not: `raylm status`, `logs`, `dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes


def status(
    results_folder: ResultsFolderArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the command that runs it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how a sweep stands, from another terminal too: what runs, the time left, the best so far.

    raylm status runs/imdb-grid --watch
    """
    with exit_codes("the sweep goes on"):
        import json
        import time

        import msgspec

        from raylm.monitor import heartbeat
        from raylm.monitor.console import Console
        from raylm.monitor.state import idle_state
        from raylm.report import formats as reporting
        from raylm.report.analysis import load_results
        from raylm.results.heartbeat import HEARTBEAT_SECONDS

        screen, found = Console(), load_results(results_folder)
        told = heartbeat.read_heartbeat(found.storage)
        if watch and told and told.is_alive:
            with screen.show_live_status() as show:
                while told and told.is_alive:
                    show(told.state or idle_state(found))
                    time.sleep(HEARTBEAT_SECONDS)
                    told = heartbeat.read_heartbeat(found.storage)
            found = load_results(results_folder)
        alive = bool(told and told.is_alive)
        state = (told.state if told and told.is_alive else None) or idle_state(found)
        if as_json:
            who = {"process": told.pid, "host": told.host} if told else {}
            print(json.dumps({"alive": alive, **who, **msgspec.to_builtins(state)}, indent=2))
        else:
            notes = [] if alive else [reporting.format_summary(found)]
            screen.print_status(state, [*([told.description] if told else []), *notes, *reporting.list_outputs(found)])


def dashboard(
    results_folder: ResultsFolderArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0: any that is free.")] = 8700,
) -> None:
    """Serve a page of a sweep to a browser on this machine, which refreshes while the sweep runs.

    raylm dashboard runs/imdb-grid
    """
    with exit_codes():
        import contextlib

        from raylm.monitor.console import Console
        from raylm.monitor.dashboard import Dashboard, DashboardServer
        from raylm.report.analysis import load_results

        found = load_results(results_folder)
        with DashboardServer(Dashboard(found.storage), port) as server, contextlib.suppress(KeyboardInterrupt):
            Console().print_note(f"{found.storage.uri}: {server.url} (Ctrl-C ends it)")
            server.serve_forever()


def logs(
    results_folder: ResultsFolderArgument,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name in the table, how that begins, or its id.")],
) -> None:
    """Show what a trial has printed in all its attempts: warnings, evaluations, errors with where they were raised.

    raylm logs runs/imdb-grid imdb-gpt2-256x8
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results
        from raylm.results import logs as kept

        found = load_results(results_folder)
        row = kept.match_row(found, run)
        for name, text in kept.read_logs(found, row):
            print(f"==> {found.storage.uri_of(name)} <==\n{text}")
        Console().print_note(f"{row.config.run_name}  {row.status}{': ' + row.reason if row.reason else ''}")
