"""How a command ends: one message and an exit code. The package raises."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylm.errors import UserError, WorkError, is_disk_full

if TYPE_CHECKING:
    pass


atexit.register(gc.freeze)  # looking for what is left over of torch and Ray takes an interpreter 1.6 s of its end


@contextmanager
def exit_codes(interrupt_note: str = "the same command goes on from here") -> Iterator[None]:
    """Mistakes of the user end with one message and exit code 2, failures of the work with 1, Ctrl-C with 130."""
    from raylm.monitor.console import Console

    try:
        yield
    except UserError as error:
        Console().print_error(str(error))
        raise typer.Exit(2) from None
    except WorkError as error:
        Console().print_error(str(error))
        raise typer.Exit(1) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if is_disk_full(error):
            Console().print_error(f"the disk is full{where}; free some space, then the same command goes on")
        else:
            Console().print_error(f"{error.strerror or error}{where}; what is done is kept, the same command goes on")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console().print_error(f"interrupted; {interrupt_note}")
        raise typer.Exit(130) from None


ResultsFolderArgument = Annotated[
    str, typer.Argument(metavar="RESULTS", help="A results folder, as runs/quickstart or s3://bucket/path/quickstart.")
]

SweepFileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Python file that ends in `sweep = Sweep(...)`.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Where the results folders are: a folder, s3://bucket/path or gs://bucket/path; "
        "default: the sweep's own, else $RAYLM_STORAGE, else ./runs.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: HOST:PORT on one of its nodes, http://HOST:PORT of its dashboard from elsewhere, "
        "local for none; default: the cluster that this machine is a node of, else none."
    ),
]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field for all trials; may be repeated.")
]
