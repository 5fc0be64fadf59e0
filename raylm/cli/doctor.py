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
from raylm.tuning.nodes import ask
from raylm.tuning.nodes import unseen as cluster_unseen

PACKAGES = ("raylm", "ray", "torch", "transformers", "datasets")
LITTLE_DISK_GIB = 20
"""Less room than this for caches and temporary files is pointed out: gpt2-xl with its checkpoint takes about 15."""
MOST_SKEW_SECONDS = 60
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    where: str
    """`here`, or the name of a node."""
    what: str
    """What was looked at."""
    found: str
    """How it stands."""
    advice: str = ""
    """What to do where it does not serve; nothing where it does."""


def examine(address: str | None, storage: Storage | None) -> Iterator[Finding]:
    """Looks at this machine, and at the cluster's nodes where there is one.

    Args:
        address: of the cluster; None: the one that this machine is a node of, if it is.
        storage: where results are to be; None: it is not looked at.
    """
    own = facts()
    yield from _of_machine("here", own, own)
    yield _token()
    if storage is not None:
        yield _storage(storage)
    address = cluster.known_address(address)
    if address == "local":
        yield Finding("here", "cluster", "none; Ray is started here when a sweep needs it")
        return
    try:
        with cluster.started_ray(address, verbose=False) as dashboard:
            yield Finding("here", "cluster", f"{len(cluster.nodes())} nodes at {address}, dashboard {dashboard}")
            yield from _of_nodes(own, storage)
    except UserError as error:
        yield Finding("here", "cluster", f"not reached at {address}", str(error))


def facts() -> dict[str, Any]:
    """What there is to know of the machine that this runs on."""
    import torch

    caches = {"raylm's cache": cache.root(), "temporary files": Path(tempfile.gettempdir())}
    devices = range(torch.cuda.device_count())
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "gpus": [torch.cuda.get_device_name(number) for number in devices],
        "gpu_gib": [torch.cuda.get_device_properties(number).total_memory / GIB for number in devices],
        "cuda": torch.version.cuda,
        "disks": {name: (str(path), _free_gib(path)) for name, path in caches.items()},
        "hub": hub.answers(),
        "time": time.time(),
    }


def _free_gib(path: Path) -> float:
    """Room at a path that may not be there yet."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free / GIB


def _of_nodes(own: dict[str, Any], storage: Storage | None) -> Iterator[Finding]:
    nodes = cluster.nodes()
    unseen = cluster_unseen(storage) if storage is not None else {}
    asked = time.time()
    answers = ask(nodes, facts)
    for node in sorted(nodes, key=lambda one: str(one["NodeManagerHostname"])):
        host, answer = str(node["NodeManagerHostname"]), answers[node["NodeID"]]
        if isinstance(answer, Exception):
            yield Finding(host, "node", "does not answer", f"{answer}; look at its logs in the dashboard")
            continue
        yield from _of_machine(host, answer, own)
        yield _clock(host, answer["time"], asked)
        yield _gpus(host, node["Resources"].get("GPU", 0), answer)
        if storage is not None:
            problem = unseen.get(host, "")
            advice = "take a bucket or a folder that all nodes share" if problem else ""
            yield Finding(host, f"storage {storage.place}", problem or "read, written and removed", advice)


def _of_machine(where: str, found: dict[str, Any], own: dict[str, Any]) -> Iterator[Finding]:
    """Versions beside those of this machine, disks, the hub."""
    versions = {"python": found["python"], **found["packages"]}
    expected = {"python": own["python"], **own["packages"]}
    other = [f"{name} {versions[name]} here {expected[name]}" for name in versions if versions[name] != expected[name]]
    yield Finding(
        where,
        "versions",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"differs: {'; '.join(other)}; install the same on all nodes" if other else "",
    )
    for name, (path, free) in found["disks"].items():
        little = free < LITTLE_DISK_GIB
        yield Finding(where, name, f"{path}: {free:.0f} GiB free", "free some space" if little else "")
    problem = found["hub"]
    yield Finding(where, "hub", problem or "answers", "check the network and HF_ENDPOINT" if problem else "")


def _clock(host: str, then: float, asked: float) -> Finding:
    """A node's clock, read some time between when it was asked and now."""
    now = time.time()
    off = max(asked - then, then - now, 0.0)
    return Finding(host, "clock", f"{off:.0f} s off", "set it by NTP" if off > MOST_SKEW_SECONDS else "")


def _gpus(host: str, of_ray: float, found: dict[str, Any]) -> Finding:
    named = [f"{name} ({gib:.0f} GiB)" for name, gib in zip(found["gpus"], found["gpu_gib"], strict=True)]
    if of_ray > len(named):
        build = "the CPU build of torch is installed" if found["cuda"] is None else "torch sees fewer: check the driver"
        return Finding(host, "GPUs", f"{of_ray:g} by Ray's count, {len(named)} by torch's", build)
    return Finding(host, "GPUs", ", ".join(named) or "none")


def _token() -> Finding:
    """Ray's token, by which nodes and commands know each other."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("here", "Ray's token", "in RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not file.exists():
        return Finding("here", "Ray's token", "none yet; a Ray that is started here makes one")
    mode = stat.S_IMODE(file.stat().st_mode)
    advice = f"others can read it: chmod 600 {file}" if mode & 0o077 else ""
    return Finding("here", "Ray's token", f"{file}, mode {mode:04o}", advice)


def _storage(storage: Storage) -> Finding:
    try:
        storage.make()
    except UserError as error:
        return Finding("here", "storage", "cannot be written to", str(error))
    free = storage.free_bytes()
    room = "" if free is None else f", {free / GIB:.0f} GiB free"
    return Finding("here", "storage", f"{storage.place}: written and removed{room}")
