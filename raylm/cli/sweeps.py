"""The verbs for a sweep's file: `raylm ls`, `cp`, `plan`, `run`, `doctor`."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from raylm.cli.common import AddressOption, OverridesOption, StorageOption, SweepFileArgument, exit_codes
from raylm.errors import UserError
from raylm.units import pluralize


def run(
    file: SweepFileArgument,
    storage: StorageOption = None,
    overrides: OverridesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run, as `raylm plan`.")] = False,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time, at most.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed rows again, from their latest checkpoints.")
    ] = False,
    address: AddressOption = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="Weights & Biases: online, offline or disabled; default: online when logged in."
        ),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Track in MLflow: a tracking URI, or a folder.")
    ] = None,
    trackio: Annotated[str | None, typer.Option(metavar="PROJECT", help="Track in this project of trackio.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the table.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Ray's own messages too.")] = False,
) -> None:
    """Run what is missing of a sweep, then show its table.

    raylm run sweeps/quickstart.py

    raylm run sweeps/imdb_grid.py --set batch_size=4 --set max_train_tokens=200000

    Running the same command again does only what is not done yet.
    """
    if dry_run:
        plan(file, storage, overrides)
        return
    if address and address.startswith(("http://", "https://")):
        options = {"storage": storage, "max-concurrent": max_concurrent}
        options |= {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}
        flags = {"retry-failed": retry_failed, "quiet": quiet, "verbose": verbose}
        _submit_job(address, file, overrides or [], options, flags)
    with exit_codes():
        from raylm import runner
        from raylm.config.sweep_file import load_sweep
        from raylm.monitor.trackers.options import resolve

        outcome = runner.run(
            load_sweep(file, overrides or ()),
            storage=storage,
            retry_failed=retry_failed,
            max_concurrent=max_concurrent,
            address=address,
            trackers=resolve(wandb, mlflow, trackio),
            quiet=quiet,
            verbose=verbose,
        )
        raise typer.Exit(outcome.exit_code)


def plan(
    file: SweepFileArgument,
    storage: StorageOption = None,
    overrides: OverridesOption = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="As on this GPU, a100-80gb or 8xh100; default: this machine.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="Of one GPU, or of a machine without: what it all costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON for scripts.")] = False,
) -> None:
    """Show what a sweep would run and what it takes; nothing is started, fetched or written.

    raylm plan sweeps/quickstart.py

    raylm plan sweeps/imdb_grid.py --gpu 8xa100-80gb --price-per-hour 1.80

    raylm plan sweeps/imdb_grid.py --gpu a100-80gb --json | jq .remaining.device_hours
    """
    with exit_codes():
        from raylm.config.sweep_file import load_sweep
        from raylm.monitor.console import Console
        from raylm.planning import throughput
        from raylm.planning.plan import plan_trials as planned
        from raylm.planning.plan import summary_lines
        from raylm.results.folder import find_results
        from raylm.runner import resolve_storage

        if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
            raise UserError(f"--price-per-hour: got {price_per_hour:g}; expected a number from 0 up, as 1.80")
        sweep = load_sweep(file, overrides or ())
        slot = throughput.find_placement(sweep.resources, sweep.precision, gpu)
        found = find_results(sweep, resolve_storage(sweep, storage))
        plans = planned([row.config for row in found.rows], slot)
        if as_json:
            from raylm.report.json_output import format_plan_json

            print(format_plan_json(sweep, found, plans, slot, price_per_hour))
            return
        left = [one for row, one in zip(found.rows, plans, strict=True) if not row.is_finished]
        Console().print_plan(found, plans, summary_lines(sweep, plans, left, slot, price_per_hour))


def ls() -> None:
    """List the sweeps that come with raylm.

    raylm ls
    """
    with exit_codes():
        from raylm.config.sweep_file import list_bundled_sweeps
        from raylm.monitor.console import Console

        Console().print_listing([(one.name, one.summary) for one in list_bundled_sweeps()])


def _complete_sweep_names() -> list[str]:
    """For the completion of a shell."""
    from raylm.config.sweep_file import list_bundled_sweeps

    return [one.name for one in list_bundled_sweeps()]


def cp(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `raylm ls` lists it.", autocompletion=_complete_sweep_names)
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to, or the folder for it.")] = Path(),
) -> None:
    """Copy a sweep that comes with raylm, to change and run it.

    raylm cp imdb_grid my_sweep.py
    """
    with exit_codes():
        from raylm.config.sweep_file import copy_bundled_sweep
        from raylm.monitor.console import Console

        copied = copy_bundled_sweep(name, file)
        Console().print_note(
            f"{copied}: give it a name of its own (name=...), so that its rows do not join those of {name}; then\n"
            f"raylm plan {copied}\nraylm run {copied}"
        )


def doctor(address: AddressOption = None, storage: StorageOption = None) -> None:
    """Look at what sweeps need: versions, token, disks, the hub; of a cluster each node, its GPUs and the storage.

    raylm doctor --storage s3://bucket/raylm
    """
    with exit_codes():
        from raylm.monitor.console import Console
        from raylm.results.open_storage import open_first_given

        screen = Console()
        place = open_first_given(("--storage", storage), ("RAYLM_STORAGE", os.environ.get("RAYLM_STORAGE")))
        with screen.show_spinner("loading torch and Ray"):
            from raylm.cli.doctor import run_checks
        problems = 0
        for finding in run_checks(address, place):
            screen.print_finding(finding.host, finding.check, finding.status, finding.advice)
            problems += bool(finding.advice)
        screen.print_note(f"{pluralize(problems, 'problem')} found" if problems else "all is well")
        raise typer.Exit(1 if problems else 0)


def _submit_job(
    address: str, file: Path, overrides: Sequence[str], options: Mapping[str, object], flags: Mapping[str, bool]
) -> NoReturn:
    """Runs the same command as a job on a cluster."""
    with exit_codes("the sweep goes on there"):
        from raylm.monitor.console import Console

        if not file.is_file():
            raise UserError(f"{file}: no such file; expected a Python file that ends in `sweep = Sweep(...)`")
        arguments = [f"--{name}={value}" for name, value in options.items() if value]
        arguments += [f"--set={override}" for override in overrides]
        arguments += [f"--{name}" for name, given in flags.items() if given]
        with Console().show_spinner("loading Ray"):
            from raylm.tuning.cluster import submit_job
        raise typer.Exit(submit_job(address, file, arguments, functools.partial(print, end="", flush=True)))
