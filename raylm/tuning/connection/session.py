"""Connection to a Ray cluster, or to a Ray that is started on this machine for as long as it lasts."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raylm import machine
from raylm.config.options import RunOptions
from raylm.errors import UserError, one_line
from raylm.stages import mark_stage
from raylm.tuning import ray_private
from raylm.tuning.connection.head import CONNECT_TIMEOUT_SECONDS, check_head
from raylm.tuning.connection.preload import open_claims, preload_trial_modules, wait_for_processes

if TYPE_CHECKING:
    from raylm.training.device import GpuReport

START_TIMEOUT_SECONDS = 120.0
"""Time for Ray to start on this machine, which takes 4 s on a quiet one."""


@contextlib.contextmanager
def connect_ray(address: str | None, verbose: bool, num_preloaded: int = 0) -> Iterator[str | None]:
    """Connect to a cluster or start Ray on this machine; yield the dashboard's URL, or None if it does not run.

    Args:
        address: as `resolve_address` takes it.
        verbose: show Ray's log messages.
        num_preloaded: processes of a Ray on this machine that import what trials need as soon as they start.

    Raises:
        UserError: if the cluster cannot be reached, requires another token or other versions, or Ray cannot start on
            this machine.
    """
    address = resolve_address(address)
    with open_claims(num_preloaded if address == "local" else 0) as claims, _connect(address, verbose, claims) as url:
        yield url


@contextlib.contextmanager
def _connect(address: str, verbose: bool, claims: Path | None) -> Iterator[str | None]:
    """Connect to Ray, as `connect_ray` does, at a resolved address.

    Args:
        claims: folder of the claims of the processes that import what trials need; None: none does.
    """
    is_local = address == "local"
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns when Ray forks this process
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if is_local:
        options |= {"include_dashboard": True, "num_cpus": machine.allowed_cpus()}
        gpus = inspect_local_gpus()
        if gpus and (gpus.problem or not ray_private.count_gpus()):  # Ray counts others than torch can use
            options["num_gpus"] = len(gpus.names)
        machine.make_folders_absolute()
        machine.prepare_ray_start()
    else:
        check_head(address)
    try:
        with ray_private.shield_processes(), ray_private.end_hanging_start(START_TIMEOUT_SECONDS) as has_hung:
            mark_stage("Ray is being started" if is_local else "connecting to Ray")
            with preload_trial_modules(claims):
                context = ray.init(address, **options)
            wait_for_processes(claims)
            mark_stage("Ray stands")
    except Exception as error:  # Ray raises errors of many classes while it starts
        if is_local:
            cause = f"has not started within {START_TIMEOUT_SECONDS:.0f} s" if has_hung() else "cannot start"
            raise UserError(f"Ray {cause}: {one_line(error)}; {machine.advise_on_ray_start()}") from error
        raise UserError(
            f"the head of the cluster at {address} answers, but Ray cannot join the cluster from this machine: "
            f"{one_line(error)}; run this command on one of its nodes, or use http:// and the address of its dashboard"
        ) from error
    try:
        ray_private.kill_processes_at_shutdown()
        url = context.dashboard_url
        with contextlib.nullcontext() if verbose else ray_private.suppress_raylet_messages():
            yield f"http://{url}" if url else None
    finally:
        with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
            ray.shutdown()  # repeats messages of raylets
        mark_stage("Ray has stopped")


def inspect_local_gpus() -> GpuReport | None:
    """Return the GPUs of this machine that torch can use; None if neither Ray nor the system knows of any.

    Then torch is not imported, which takes more than a second of the time to the first trial.
    """
    if not ray_private.count_gpus() and not machine.has_gpu_driver():
        return None
    from raylm.training.device import inspect_gpus

    return inspect_gpus()


def check_start(options: RunOptions, cpus: int) -> None:
    """Check what `connect_ray` is going to need, before anything that takes long.

    Args:
        cpus: CPUs of a trial.

    Raises:
        UserError: if the cluster cannot be reached; or if Ray would be started on this machine, and cannot, or the
            machine has fewer cores than a trial requests, or trials are to wait for workers, which could not join.
    """
    address = resolve_address(options.address)
    if address == "local":
        if options.wait_for_workers:
            raise UserError(
                "--wait-for-workers: there is no cluster that workers could join: raylm would start Ray on this "
                "machine only; run it on a node of the cluster, or name one with --address"
            )
        machine.prepare_ray_start(cpus)
    else:
        check_head(address)


def resolve_address(address: str | None) -> str:
    """Return the address of the cluster that a command uses, or `local` if it is to start Ray on this machine.

    Args:
        address: address given by the user; None: `$RAY_ADDRESS`, else the cluster that `ray start` made this machine a
            node of, else `local`; `auto`: that cluster.

    Raises:
        UserError: if the address is `auto` and this machine belongs to no cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "", "auto"):
        return str(address)
    found = find_local_cluster()
    if address == "auto" and not found:
        raise UserError(
            "address auto: no Ray of `ray start` runs on this machine; expected the HOST:PORT of a head, or local"
        )
    return found or "local"


def find_local_cluster() -> str | None:
    """Return the address of the cluster that this machine is a node of, or None if there is none that listens.

    Ray keeps the address of a cluster that has died, and would wait for it for minutes. All users of a machine find the
    same address: a cluster that another user has started counts only if it can be joined.
    """
    try:
        address, owner = ray_private.last_cluster()
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError):  # none, one that has died, or whose address only another user may read
        return None
    if owner != os.getuid():
        try:
            check_head(address)
        except UserError:
            return None
    return address
