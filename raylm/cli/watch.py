"""Verbs that watch a sweep, running or not, from another terminal: `raylm status`, `logs`, `dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from raylm.cli.common import ResultsFolderArgument, exit_codes
from raylm.errors import UserError


def status(
    results_folder: ResultsFolderArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until the sweep ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """Show the state of a sweep, or of all that run in a storage: running trials, time left, best rows so far.

    raylm status runs/imdb-grid --watch

    raylm status runs
    """
    with exit_codes("the sweep continues"):
        import json
        import time

        import msgspec

        from raylm.monitor import heartbeat
        from raylm.monitor.console import Console
        from raylm.monitor.state import idle_state
        from raylm.report import formats
        from raylm.report.analysis import load_results
        from raylm.results.heartbeat import HEARTBEAT_SECONDS

        if _show_running(results_folder, watch, as_json):
            return
        console, results = Console(), load_results(results_folder)
        last = heartbeat.read_heartbeat(results.storage)
        if watch and last and last.is_alive:
            with console.show_live_status() as show:
                while last and last.is_alive:
                    show(last.state or idle_state(results))
                    time.sleep(HEARTBEAT_SECONDS)
                    last = heartbeat.read_heartbeat(results.storage)
            results = load_results(results_folder)
        alive = bool(last and last.is_alive)
        state = (last.state if last and last.is_alive else None) or idle_state(results)
        if as_json:
            process = {"process": last.pid, "host": last.host} if last else {}
            print(json.dumps({"alive": alive, **process, **msgspec.to_builtins(state)}, indent=2))
        else:
            summary = [] if alive else [formats.format_summary(results)]
            heartbeat_note = [last.description] if last else []
            console.print_status(state, [*heartbeat_note, *summary, *formats.list_outputs(results)])


def _show_running(location: str, watch: bool, as_json: bool) -> bool:
    """Show the state of each sweep that runs in a storage; return False if the location is not one.

    Raises:
        UserError: if one sweep has to be chosen.
    """
    import json

    import msgspec

    from raylm.monitor import listing
    from raylm.monitor.console import Console
    from raylm.monitor.state import idle_state
    from raylm.results.open_storage import open_storage

    storage = open_storage(location)
    if listing.is_results_folder(storage) or not (names := listing.find_sweeps(storage)):
        return False
    if watch:
        raise UserError(f"--watch shows one sweep; expected {' or '.join(f'{location}/{name}' for name in names[:3])}")
    running, console = listing.find_running(storage), Console()
    states = [(results, last, last.state or idle_state(results)) for results, last in running]
    if as_json:
        entries = [
            {"results": results.storage.uri, "alive": True, "process": last.pid, "host": last.host}
            | msgspec.to_builtins(state)
            for results, last, state in states
        ]
        print(json.dumps(entries, indent=2))
        return True
    for results, last, state in states:
        console.print_status(state, [f"{results.storage.uri}: {last.description}", ""])
    console.print_note(f"{len(running)} of {len(names)} sweeps in {location} running; raylm ls {location} lists all")
    return True


def dashboard(
    results_folder: ResultsFolderArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free one.")] = 8700,
) -> None:
    """Serve a page of a sweep to a browser on this machine. It refreshes while the sweep runs.

    raylm dashboard runs/imdb-grid
    """
    with exit_codes():
        import contextlib

        from raylm.monitor.console import Console
        from raylm.monitor.dashboard import Dashboard, DashboardServer
        from raylm.report.analysis import load_results

        results = load_results(results_folder)
        with DashboardServer(Dashboard(results.storage), port) as server, contextlib.suppress(KeyboardInterrupt):
            Console().print_note(f"{results.storage.uri}: {server.url} (press Ctrl-C to stop)")
            server.serve_forever()


def logs(
    results_folder: ResultsFolderArgument,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run name, unique prefix, or trial id.")],
) -> None:
    """Show the output of a trial in all its attempts: warnings, evaluations, errors with their tracebacks.

    raylm logs runs/imdb-grid imdb-gpt2-256x8
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.report.analysis import load_results
        from raylm.results.logs import match_row, read_logs

        results = load_results(results_folder)
        row = match_row(results, run)
        for name, text in read_logs(results, row):
            print(f"==> {results.storage.uri_of(name)} <==\n{text}")
        Console().print_note(f"{row.config.run_name}  {row.status}{': ' + row.reason if row.reason else ''}")
