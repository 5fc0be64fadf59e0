"""`raylm doctor`: what a sweep needs, looked at on this machine and on every node of a cluster, before it is needed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.data import cache, hub
from raylm.errors import UserError
from raylm.results.storage import Storage
from raylm.tuning import cluster
from raylm.tuning.nodes import find_storage_problems as cluster_unseen
from raylm.tuning.nodes import run_on_nodes
from raylm.units import GIB

PACKAGES = ("raylm", "ray", "torch", "transformers", "datasets")
MIN_FREE_DISK_GIB = 20
"""Less room than this for caches and temporary files is pointed out: gpt2-xl with its checkpoint takes about 15."""
MAX_CLOCK_SKEW_SECONDS = 60


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at."""

    host: str
    """`here`, or the name of a node."""
    check: str
    """What was looked at."""
    status: str
    """How it stands."""
    advice: str = ""
    """What to do where it does not serve; nothing where it does."""


def run_checks(address: str | None, storage: Storage | None) -> Iterator[CheckResult]:
    """Looks at this machine, and at the cluster's nodes where there is one.

    Args:
        address: of the cluster; None: the one that this machine is a node of, if it is.
        storage: where results are to be; None: it is not looked at.
    """
    own = collect_facts()
    yield from _check_machine("here", own, own)
    yield _check_token()
    if storage is not None:
        yield _check_storage(storage)
    address = cluster.resolve_address(address)
    if address == "local":
        yield CheckResult("here", "cluster", "none; Ray is started here when a sweep needs it")
        return
    try:
        with cluster.connect_ray(address, verbose=False) as dashboard:
            yield CheckResult(
                "here", "cluster", f"{len(cluster.list_alive_nodes())} nodes at {address}, dashboard {dashboard}"
            )
            yield from _check_nodes(own, storage)
    except UserError as error:
        yield CheckResult("here", "cluster", f"not reached at {address}", str(error))


def collect_facts() -> dict[str, Any]:
    """What there is to know of the machine that this runs on."""
    import torch

    caches = {"raylm's cache": cache.root_dir(), "temporary files": Path(tempfile.gettempdir())}
    devices = range(torch.cuda.device_count())
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "gpus": [torch.cuda.get_device_name(number) for number in devices],
        "gpu_gib": [torch.cuda.get_device_properties(number).total_memory / GIB for number in devices],
        "cuda": torch.version.cuda,
        "disks": {name: (str(path), _free_gib(path)) for name, path in caches.items()},
        "hub": hub.check_connection(),
        "time": time.time(),
    }


def _free_gib(path: Path) -> float:
    """Room at a path that may not be there yet."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free / GIB


def _check_nodes(local_facts: dict[str, Any], storage: Storage | None) -> Iterator[CheckResult]:
    nodes = cluster.list_alive_nodes()
    unseen = cluster_unseen(storage) if storage is not None else {}
    asked = time.time()
    answers = run_on_nodes(nodes, collect_facts)
    for node in sorted(nodes, key=lambda one: str(one["NodeManagerHostname"])):
        host, answer = str(node["NodeManagerHostname"]), answers[node["NodeID"]]
        if isinstance(answer, Exception):
            yield CheckResult(host, "node", "does not answer", f"{answer}; look at its logs in the dashboard")
            continue
        yield from _check_machine(host, answer, local_facts)
        yield _check_clock(host, answer["time"], asked)
        yield _check_gpus(host, node["Resources"].get("GPU", 0), answer)
        if storage is not None:
            problem = unseen.get(host, "")
            advice = "take a bucket or a folder that all nodes share" if problem else ""
            yield CheckResult(host, f"storage {storage.uri}", problem or "read, written and removed", advice)


def _check_machine(host: str, facts: dict[str, Any], local_facts: dict[str, Any]) -> Iterator[CheckResult]:
    """Versions beside those of this machine, disks, the hub."""
    versions = {"python": facts["python"], **facts["packages"]}
    expected = {"python": local_facts["python"], **local_facts["packages"]}
    other = [f"{name} {versions[name]} here {expected[name]}" for name in versions if versions[name] != expected[name]]
    yield CheckResult(
        host,
        "versions",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"differs: {'; '.join(other)}; install the same on all nodes" if other else "",
    )
    for name, (path, free) in facts["disks"].items():
        little = free < MIN_FREE_DISK_GIB
        yield CheckResult(host, name, f"{path}: {free:.0f} GiB free", "free some space" if little else "")
    problem = facts["hub"]
    yield CheckResult(host, "hub", problem or "answers", "check the network and HF_ENDPOINT" if problem else "")


def _check_clock(host: str, node_time: float, request_time: float) -> CheckResult:
    """A node's clock, read some time between when it was asked and now."""
    now = time.time()
    off = max(request_time - node_time, node_time - now, 0.0)
    return CheckResult(host, "clock", f"{off:.0f} s off", "set it by NTP" if off > MAX_CLOCK_SKEW_SECONDS else "")


def _check_gpus(host: str, num_ray_gpus: float, facts: dict[str, Any]) -> CheckResult:
    named = [f"{name} ({gib:.0f} GiB)" for name, gib in zip(facts["gpus"], facts["gpu_gib"], strict=True)]
    if num_ray_gpus > len(named):
        build = "the CPU build of torch is installed" if facts["cuda"] is None else "torch sees fewer: check the driver"
        return CheckResult(host, "GPUs", f"{num_ray_gpus:g} by Ray's count, {len(named)} by torch's", build)
    return CheckResult(host, "GPUs", ", ".join(named) or "none")


def _check_token() -> CheckResult:
    """Ray's token, by which nodes and commands know each other."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return CheckResult("here", "Ray's token", "in RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not file.exists():
        return CheckResult("here", "Ray's token", "none yet; a Ray that is started here makes one")
    mode = stat.S_IMODE(file.stat().st_mode)
    advice = f"others can read it: chmod 600 {file}" if mode & 0o077 else ""
    return CheckResult("here", "Ray's token", f"{file}, mode {mode:04o}", advice)


def _check_storage(storage: Storage) -> CheckResult:
    try:
        storage.create()
    except UserError as error:
        return CheckResult("here", "storage", "cannot be written to", str(error))
    free = storage.free_bytes()
    room = "" if free is None else f", {free / GIB:.0f} GiB free"
    return CheckResult("here", "storage", f"{storage.uri}: written and removed{room}")
