"""Shared parts of the verbs: exit codes, and the arguments and options that several of them take."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from raylm.errors import UserError, WorkError, describe_os_error
from raylm.files import WORKING_FOLDER_GONE, is_working_folder_gone

atexit.register(gc.freeze)  # else the interpreter spends 1.6 s at exit on collecting the objects of torch and Ray


@contextmanager
def exit_codes(interrupt_note: str = "", failure_note: str = "") -> Iterator[None]:
    """Turn exceptions into one message and an exit code: user errors 2, failures of the work 1, Ctrl-C 130.

    Output whose reader has left, as by `| head`, ends the command in silence with exit code 0.

    Args:
        interrupt_note: printed after `interrupted; ` on Ctrl-C.
        failure_note: printed after an error of the system, if part of the work is saved.
    """
    from raylm.monitor.console import Console
    from raylm.monitor.screen import discard_output, prepare_streams

    prepare_streams()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # warns of a home that cannot be written
    try:
        yield
        sys.stdout.flush()
    except (UserError, WorkError) as error:
        gone = f"; {WORKING_FOLDER_GONE}" if is_working_folder_gone() and WORKING_FOLDER_GONE not in str(error) else ""
        Console().print_error(f"{error}{gone}")
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None
    except BrokenPipeError:  # as by `| head`: nobody reads on
        discard_output(sys.stdout)
        raise typer.Exit(0) from None
    except OSError as error:
        if not failure_note and is_working_folder_gone():
            Console().print_error(WORKING_FOLDER_GONE)
            raise typer.Exit(2) from None
        Console().print_error("; ".join(filter(None, [describe_os_error(error), failure_note])))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console().print_error("; ".join(filter(None, ["interrupted", interrupt_note])))
        raise typer.Exit(130) from None


ResultsFolderArgument = Annotated[
    str,
    typer.Argument(metavar="RESULTS", help="Results folder, such as runs/quickstart or s3://bucket/path/quickstart."),
]
SweepFileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Python file that ends in `sweep = Sweep(...)`.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Location of the results folders: a folder, s3://bucket/path or gs://bucket/path; "
        "default: the sweep's storage, else $RAYLM_STORAGE, else ./runs.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: HOST:PORT on one of its nodes, http://HOST:PORT of its dashboard from elsewhere, "
        "local for none; default: the cluster that this machine belongs to, else none."
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field for all trials; may be repeated."),
]
