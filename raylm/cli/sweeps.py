"""Verbs for a sweep file: `raylm ls`, `cp`, `plan`, `run`, `doctor`."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from raylm.cli.common import AddressOption, OverridesOption, StorageOption, SweepFileArgument, exit_codes
from raylm.errors import UserError
from raylm.units import pluralize

LOCAL_PARAMETERS = ("file", "address", "dry_run")
"""Parameters of `raylm run` that are not passed on to a cluster."""


def run(
    context: typer.Context,
    file: SweepFileArgument,
    storage: StorageOption = None,
    overrides: OverridesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan, as `raylm plan` does.")] = False,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Maximum number of concurrent trials.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry failed rows from their latest checkpoints.")
    ] = False,
    address: AddressOption = None,
    wait_for_workers: Annotated[
        bool,
        typer.Option("--wait-for-workers", help="Let trials wait for nodes that will join the cluster; else refuse."),
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="Weights & Biases: online, offline or disabled; default: online if logged in."
        ),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Track in MLflow: a tracking URI, or a folder.")
    ] = None,
    trackio: Annotated[str | None, typer.Option(metavar="PROJECT", help="Track in this trackio project.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only the table.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Also show the stages of the command with their times, and Ray's log messages."
        ),
    ] = False,
) -> None:
    """Run the unfinished trials of a sweep, then show its table.

    raylm run sweeps/quickstart.py

    raylm run sweeps/imdb_grid.py --set batch_size=4 --set max_train_tokens=200000

    The same command, run again, resumes the sweep: finished trials are not repeated.
    """
    if dry_run:
        plan(file, storage, overrides)
        return
    if address and address.startswith(("http://", "https://")):
        _submit_job(address, file, context)
    with exit_codes("run the same command to resume", "finished trials are saved; run the same command to resume"):
        from raylm.config.sweep_file import load_sweep
        from raylm.imports import pause_garbage_collection
        from raylm.monitor.console import Console
        from raylm.stages import mark_stage, show_stages

        console = Console(quiet=quiet, keeps_working=True)
        with show_stages(console.print_note) if verbose else contextlib.nullcontext():
            mark_stage("command read")
            spinner = console.show_spinner(f"reading {file}", on_terminal_only=True)
            with spinner, pause_garbage_collection():  # the file imports Ray
                from raylm import runner
                from raylm.monitor.trackers.options import resolve

                sweep = load_sweep(file, overrides or ())
            mark_stage("sweep file read")
            result = runner.run(
                sweep,
                storage=storage,
                retry_failed=retry_failed,
                max_concurrent=max_concurrent,
                address=address,
                wait_for_workers=wait_for_workers,
                trackers=resolve(wandb, mlflow, trackio),
                quiet=quiet,
                verbose=verbose,
            )
            mark_stage("command ends")
        raise typer.Exit(result.exit_code)


def plan(
    file: SweepFileArgument,
    storage: StorageOption = None,
    overrides: OverridesOption = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Plan for this GPU, a100-80gb or 8xh100; default: this machine.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(metavar="PRICE", help="Price per GPU-hour (per machine-hour on CPU); adds a cost estimate."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show the trials of a sweep and their cost; nothing is started, downloaded or written.

    raylm plan sweeps/quickstart.py

    raylm plan sweeps/imdb_grid.py --gpu 8xa100-80gb --price-per-hour 1.80

    raylm plan sweeps/imdb_grid.py --gpu a100-80gb --json | jq .remaining.device_hours
    """
    with exit_codes():
        from raylm.config.sweep_file import load_sweep
        from raylm.monitor.console import Console
        from raylm.planning import throughput
        from raylm.planning.plan import describe_prepared_data, plan_trials, planned_trials
        from raylm.planning.totals import summary_lines
        from raylm.results.folder import find_results
        from raylm.results.open_storage import resolve_storage

        if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
            raise UserError(f"--price-per-hour: got {price_per_hour:g}; expected a number of at least 0, such as 1.80")
        console = Console(quiet=as_json)
        with console.show_spinner(f"planning {file}", on_terminal_only=True):  # the file imports Ray
            sweep = load_sweep(file, overrides or ())
            placement = throughput.find_placement(sweep.resources, sweep.precision, gpu)
            results = find_results(sweep, resolve_storage(sweep, storage))
            plans = plan_trials([row.config for row in results.rows], placement)
        if as_json:
            from raylm.report.json_output import format_plan_json

            print(format_plan_json(sweep, results, plans, placement, price_per_hour))
            return
        remaining = [plan for row, plan in zip(results.rows, plans, strict=True) if not row.is_finished]
        notes = summary_lines(sweep, plans, remaining, placement, price_per_hour)
        console.print_plan(results, plans, [*notes, *describe_prepared_data(planned_trials(sweep, results))])


def ls(
    storage: Annotated[
        str | None,
        typer.Argument(metavar="RUNS", help="Location of results folders, such as runs; default: the bundled sweeps."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sweeps of RUNS as JSON.")] = False,
) -> None:
    """List the bundled sweeps, or the sweeps of a storage with their state.

    raylm ls

    raylm ls runs
    """
    with exit_codes():
        from raylm.config.sweep_file import list_bundled_sweeps
        from raylm.monitor.console import Console

        if storage is None:
            if as_json:
                raise UserError("--json needs a location of results folders, as in raylm ls runs --json")
            Console().print_listing([(sweep.name, sweep.summary) for sweep in list_bundled_sweeps()])
            return
        import dataclasses
        import json

        from raylm.monitor import listing
        from raylm.results.open_storage import open_storage

        sweeps = listing.list_sweeps(open_storage(storage))
        if not sweeps:
            raise UserError(f"{storage} has no results folders; expected a location such as runs, with STORAGE/SWEEP")
        if as_json:
            print(json.dumps([dataclasses.asdict(sweep) for sweep in sweeps], indent=2, ensure_ascii=False))
        else:
            Console().print_sheet(listing.build_listing_sheet(sweeps))


def _complete_sweep_names() -> list[str]:
    """Return the names that a shell completes."""
    from raylm.config.sweep_file import list_bundled_sweeps

    return [sweep.name for sweep in list_bundled_sweeps()]


def cp(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name shown by `raylm ls`.", autocompletion=_complete_sweep_names)
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to create, or a folder for it.")] = Path(),
) -> None:
    """Copy a bundled sweep, to edit and run it.

    raylm cp imdb_grid my_sweep.py
    """
    with exit_codes():
        from raylm.config.sweep_file import copy_bundled_sweep
        from raylm.monitor.console import Console

        copied = copy_bundled_sweep(name, file)
        Console().print_note(
            f"{copied}: set another name (name=...), so that its rows are kept apart from those of {name}; then\n"
            f"raylm plan {copied}\nraylm run {copied}"
        )


def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[CLUSTER.YAML]", help="Cluster file to check before `ray up`, offline, instead."),
    ] = None,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Check the environment: versions, auth token, disk space, Hub access; on a cluster also every node's GPUs.

    raylm doctor --storage s3://bucket/raylm

    raylm doctor cluster.yaml
    """
    if file is not None:
        _check_cluster_file(file, address, storage)
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.results.open_storage import open_first_given

        console = Console()
        opened = open_first_given(("--storage", storage), ("RAYLM_STORAGE", os.environ.get("RAYLM_STORAGE")))
        with console.show_spinner("loading torch and Ray"):
            from raylm.cli.doctor import run_checks
        num_problems = 0
        for result in run_checks(address, opened):
            console.print_finding(result.host, result.check, result.status, result.advice)
            num_problems += bool(result.advice)
        console.print_note(f"{pluralize(num_problems, 'problem')} found" if num_problems else "no problems found")
        raise typer.Exit(1 if num_problems else 0)


def _check_cluster_file(path: Path, address: str | None, storage: str | None) -> NoReturn:
    """Show what has to be changed in a file for `ray up`, KubeRay, SkyPilot or SLURM, and on this machine."""
    with exit_codes():
        from raylm.cli.cluster_file import NEXT_COMMANDS, read_cluster_file
        from raylm.monitor.console import Console

        if address or storage:
            raise UserError("doctor checks a cluster file without its cluster; leave out --address and --storage")
        console, file = Console(), read_cluster_file(path)
        with console.show_spinner("loading Ray", on_terminal_only=True):
            from raylm.cli.cluster_checks import check_file, list_quotas
        results = list(check_file(file))
        for result in results:
            console.print_finding(result.host, result.check, result.status, result.advice)
        num_changes = sum(bool(result.advice) for result in results)
        if quotas := list_quotas(file):
            lines = "".join(f"\n    {quota}" for quota in quotas)
            console.print_note(f"quotas that all workers take together, which only the provider knows:{lines}")
        command = NEXT_COMMANDS[file.kind].format(file=path)
        console.print_note(
            f"{pluralize(num_changes, 'thing')} to change" if num_changes else f"nothing to change: {command}"
        )
        raise typer.Exit(2 if num_changes else 0)


def _submit_job(address: str, file: Path, context: typer.Context) -> NoReturn:
    """Run the same command as a job on a cluster, with all its options except the address."""
    with exit_codes("the sweep continues on the cluster"):
        from raylm.monitor.console import Console
        from raylm.monitor.trackers.options import find_wandb_opt_out

        if not file.is_file():
            raise UserError(f"{file}: no such file; expected a Python file that ends in `sweep = Sweep(...)`")
        arguments = _format_options(context)
        if opt_out := find_wandb_opt_out(context.params["wandb"]):  # the settings of this machine, not of the head
            arguments.append(f"--wandb={opt_out[0]}")
            print(opt_out[1])
        with Console().show_spinner("loading Ray"):
            from raylm.tuning.connection.jobs import submit_job
        raise typer.Exit(submit_job(address, file, arguments, functools.partial(print, end="", flush=True)))


def _format_options(context: typer.Context) -> list[str]:
    """Return the options that a command was given, as command-line arguments."""
    arguments = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in LOCAL_PARAMETERS or value is None or value is False:
            continue
        flag = parameter.opts[0]
        if value is True:
            arguments.append(flag)
        else:
            values = value if isinstance(value, list | tuple) else [value]
            arguments += [f"{flag}={item}" for item in values]
    return arguments
