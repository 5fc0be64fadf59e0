"""`raylm doctor`: checks of this machine and of every node of a cluster before a sweep runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylm import machine
from raylm.cli.check_result import CheckResult
from raylm.data import cache, hub
from raylm.errors import UserError
from raylm.results.storage import Storage
from raylm.shadowing import describe_shadowing
from raylm.training.device import inspect_gpus, resolve_precision
from raylm.tuning import ray_private
from raylm.tuning.cluster import list_alive_nodes, run_on_nodes
from raylm.tuning.connection import session
from raylm.tuning.nodes import find_storage_problems
from raylm.tuning.resources.autoscaler import find_autoscaler
from raylm.units import GIB

PACKAGES = ("raylm", "ray", "torch", "transformers", "datasets")
MIN_FREE_DISK_GIB = 20
"""Free disk space below which a warning is shown: gpt2-xl with its checkpoint takes about 15."""
MAX_CLOCK_SKEW_SECONDS = 60


def run_checks(address: str | None, storage: Storage | None) -> Iterator[CheckResult]:
    """Yield the results of checking this machine and all nodes of the cluster, if there is one.

    Args:
        address: address of the cluster; None: the cluster that this machine belongs to, if any.
        storage: location of the results; None: not checked.
    """
    own = collect_facts()
    yield from _check_machine("here", own, own)
    yield _check_token()
    yield from _check_process()
    if storage is not None:
        yield _check_storage(storage)
    address = session.resolve_address(address)
    if address == "local":
        yield from _check_ray_start()
        yield _check_gpus("here", ray_private.count_gpus() or len(own["gpus"]), own)  # as raylm starts Ray
        yield CheckResult("here", "cluster", "none; a sweep starts Ray on this machine")
        return
    try:
        with session.connect_ray(address, verbose=False) as dashboard:
            yield CheckResult("here", "cluster", f"{len(list_alive_nodes())} nodes at {address}, dashboard {dashboard}")
            yield from _check_autoscaler()
            yield from _check_nodes(own, storage)
    except UserError as error:
        yield CheckResult("here", "cluster", f"cannot be reached at {address}", str(error))


def collect_facts() -> dict[str, Any]:
    """Return versions, GPUs, disks, Hub access and time of the machine it runs on, as plain data."""
    gpus = inspect_gpus()
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "gpus": gpus.names,
        "gpu_gib": [memory / GIB for memory in gpus.memory_bytes],
        "gpu_problem": gpus.problem,
        "gpu_use": "" if gpus.problem else f"{gpus.device} in {resolve_precision('auto', gpus.device)}",
        "cpu_use": f"cpu in {resolve_precision('auto', 'cpu')}",
        "disks": _measure_disks(),
        "hub": hub.check_connection(),
        "time": time.time(),
    }


def _measure_disks() -> dict[str, tuple[str, float]]:
    """Return the folders of raylm's cache and of temporary files, each with its free space in GiB.

    A folder that this user does not have, or may not look into, is left out: another check names it.
    """
    found = {}
    with contextlib.suppress(UserError, OSError):
        found["raylm's cache"] = (str(cache.root_dir()), _free_gib(cache.root_dir()))
    with contextlib.suppress(OSError):
        found["temporary files"] = (tempfile.gettempdir(), _free_gib(Path(tempfile.gettempdir())))
    return found


def _free_gib(path: Path) -> float:
    """Return the free space at a path that may not exist yet, in GiB."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free / GIB


def _check_autoscaler() -> Iterator[CheckResult]:
    """Yield the node types that the connected cluster's autoscaler can start; nothing if it has none."""
    autoscaler = find_autoscaler()
    if autoscaler.problem:
        yield CheckResult("here", "autoscaler", "its node types are not known", autoscaler.problem)
    elif autoscaler.types:
        yield CheckResult("here", "autoscaler", f"can start {autoscaler}")


def _check_nodes(local_facts: dict[str, Any], storage: Storage | None) -> Iterator[CheckResult]:
    """Yield the results of checking every node of the connected cluster."""
    nodes = list_alive_nodes()
    storage_problems = find_storage_problems(storage) if storage is not None else {}
    request_time = time.time()
    facts_by_node = run_on_nodes(nodes, collect_facts)
    for node in sorted(nodes, key=lambda node: str(node["NodeManagerHostname"])):
        host, facts = str(node["NodeManagerHostname"]), facts_by_node[node["NodeID"]]
        if isinstance(facts, Exception):
            yield CheckResult(host, "node", "does not answer", f"{facts}; see its logs in the dashboard")
            continue
        yield from _check_machine(host, facts, local_facts)
        yield _check_clock(host, facts["time"], request_time)
        yield _check_gpus(host, node["Resources"].get("GPU", 0), facts)
        if storage is not None:
            problem = storage_problems.get(host, "")
            advice = "use a bucket or a folder that all nodes share" if problem else ""
            yield CheckResult(host, f"storage {storage.uri}", problem or "read, written and removed", advice)


def _check_machine(host: str, facts: dict[str, Any], local_facts: dict[str, Any]) -> Iterator[CheckResult]:
    """Yield the results for versions, compared with this machine, disk space and Hub access."""
    versions = {"python": facts["python"], **facts["packages"]}
    expected = {"python": local_facts["python"], **local_facts["packages"]}
    differing = [
        f"{name} {versions[name]} here {expected[name]}" for name in versions if versions[name] != expected[name]
    ]
    yield CheckResult(
        host,
        "versions",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"different: {'; '.join(differing)}; install the same versions on all nodes" if differing else "",
    )
    for name, (path, free) in facts["disks"].items():
        advice = "free some space" if free < MIN_FREE_DISK_GIB else ""
        yield CheckResult(host, name, f"{path}: {free:.0f} GiB free", advice)
    problem = facts["hub"]
    yield CheckResult(host, "hub", problem or "answers", "check the network and HF_ENDPOINT" if problem else "")


def _check_clock(host: str, node_time: float, request_time: float) -> CheckResult:
    """Return the clock skew of a node whose time was read between the request and now."""
    now = time.time()
    skew = max(request_time - node_time, node_time - now, 0.0)
    return CheckResult(
        host, "clock", f"{skew:.0f} s off", "synchronize it with NTP" if skew > MAX_CLOCK_SKEW_SECONDS else ""
    )


def _check_gpus(host: str, num_ray_gpus: float, facts: dict[str, Any]) -> CheckResult:
    """Return the GPUs of a node as torch reports them, compared with Ray's count, and what trials train on there."""
    gpus = [f"{name} ({gib:.0f} GiB)" for name, gib in zip(facts["gpus"], facts["gpu_gib"], strict=True)]
    status, advice = ", ".join(gpus) or "none", ""
    if num_ray_gpus != len(gpus):
        status = f"{num_ray_gpus:g} according to Ray, {len(gpus)} to torch{': ' if gpus else ''}{', '.join(gpus)}"
    if num_ray_gpus > len(gpus):
        advice = facts["gpu_problem"] or "torch sees fewer: check CUDA_VISIBLE_DEVICES and the driver"
    used = facts["gpu_use"] if gpus and num_ray_gpus else facts["cpu_use"]
    return CheckResult(host, "GPUs", f"{status}; trials train on {used}", advice)


def _check_process() -> Iterator[CheckResult]:
    """Yield the results for what a command may use here: cores, the cache, packages that are found."""
    exist, allowed = os.cpu_count() or 1, machine.allowed_cpus()
    restricted = "" if allowed == exist else f"; {exist} exist (affinity, control group or SLURM)"
    yield CheckResult("here", "cores", f"{allowed} allowed{restricted}")
    problem = cache.find_problem()
    yield CheckResult("here", "cache", "cannot be written" if problem else "written and removed", problem or "")
    shadowing = describe_shadowing(".")
    yield CheckResult("here", "working folder", "shadows a package" if shadowing else "shadows none", shadowing or "")


def _check_ray_start() -> Iterator[CheckResult]:
    """Yield the results for what Ray needs to start on this machine."""
    obstacle = machine.find_ray_obstacle()
    status = "cannot start" if obstacle else f"temporary folder {machine.ray_temporary_folder()}, loopback answers"
    yield CheckResult("here", "Ray's start", status, obstacle or "")
    limits = machine.describe_limits()
    yield CheckResult("here", "limits", "low" if limits else "high enough", limits)


def _check_token() -> CheckResult:
    """Return the state of Ray's auth token on this machine."""
    try:
        place = machine.find_ray_token()
        default = machine.default_ray_token_file()
    except UserError as error:
        return CheckResult("here", "Ray's token", "cannot be read", str(error))
    except RuntimeError:
        return CheckResult("here", "Ray's token", "no home folder", "set HOME, or RAY_AUTH_TOKEN to any secret text")
    if place == "RAY_AUTH_TOKEN":
        return CheckResult("here", "Ray's token", "in RAY_AUTH_TOKEN")
    if place is None:
        existing = next(folder for folder in default.parents if folder.exists())
        advice = "" if os.access(existing, os.W_OK | os.X_OK) else "set HOME to a folder that can be written"
        status = "can be created" if not advice else f"cannot be created: {existing} cannot be written"
        return CheckResult("here", "Ray's token", f"none in {default}, {status}", advice)
    mode = stat.S_IMODE(Path(place).stat().st_mode)
    advice = f"others can read it: chmod 600 {place}" if mode & 0o077 else ""
    return CheckResult("here", "Ray's token", f"{place}, mode {mode:04o}", advice)


def _check_storage(storage: Storage) -> CheckResult:
    """Return whether the storage can be written to from this machine."""
    try:
        storage.create()
    except UserError as error:
        return CheckResult("here", "storage", "cannot be written to", str(error))
    free = storage.free_bytes()
    space = "" if free is None else f", {free / GIB:.0f} GiB free"
    return CheckResult("here", "storage", f"{storage.uri}: written and removed{space}")
