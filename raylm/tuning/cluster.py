"""The Ray cluster: reached or started, what its nodes offer or could offer, whether each of them sees the storage."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import ray
import yaml
from ray._private.services import find_bootstrap_address

from raylm.config.trial import Resources
from raylm.errors import UserError, WorkError, one_line
from raylm.planning.devices import Device, find_device
from raylm.results.storage import Storage
from raylm.tuning import cluster

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at import

WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",  # a worker whose trial was stopped in the middle of a step is waited for
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a checkpoint on the way has no loss
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # a log is no place for bars
}
AUTOSCALER_FILE = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` lays down on the head: the kinds of nodes that it may start."""
GPU_MEMORY_RESOURCE = "gpu_gib"
"""The custom resource in which nodes tell the memory of their GPUs, in GiB, of all their cards together."""
ACCELERATOR_TYPE_PREFIX = "accelerator_type:"
"""How the resource begins by which Ray names a node's GPUs."""
NODE_TIMEOUT_SECONDS = 60.0
"""Time that a node has to answer a question; a process has to be started there first."""
CONNECT_TIMEOUT_SECONDS = 2.0
STORAGE_CHECK_FOLDER = ".seen"
"""Folder in which nodes show each other that they see the storage."""

NodeResources = Mapping[str, float]
"""Resources by Ray's names: `CPU`, `GPU`, and custom ones."""


@contextlib.contextmanager
def connect_ray(address: str | None, verbose: bool) -> Iterator[str | None]:
    """A connection to a running cluster, or Ray on this machine; gives the dashboard's address.

    Args:
        address: of the cluster; None: `$RAY_ADDRESS`, else the cluster that `ray start` has made this machine a node
            of, else Ray is started here.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    address = resolve_address(address)
    here = address == "local"
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    os.environ.update({name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()})
    if here:
        _create_auth_token()
    try:
        context = ray.init(
            address,
            include_dashboard=True if here else None,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            runtime_env=None if here else {"env_vars": WORKER_ENVIRONMENT},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"Ray cannot be reached at {address}: {one_line(error)}; `raylm doctor` looks further, "
            "and --address local starts Ray on this machine"
        ) from error
    try:
        url = context.dashboard_url
        with contextlib.nullcontext() if verbose else cluster.suppress_raylet_messages():
            yield f"http://{url}" if url else None
    finally:
        with contextlib.nullcontext() if verbose else cluster.suppress_stdout():
            ray.shutdown()  # prints what raylets have said more than once


def resolve_address(address: str | None) -> str:
    """Of the cluster that a command is to use; `local` where it is to start one."""
    return address or os.environ.get("RAY_ADDRESS") or _find_local_cluster() or "local"


def _find_local_cluster() -> str | None:
    """Of the cluster that `ray start` has made this machine a node of, if that still listens.

    Ray keeps the address of one that has died, and would wait for it for minutes.
    """
    address = str(find_bootstrap_address(None) or "")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS):
            return address
    except (OSError, ValueError):
        return None


# ---- resources ----------------------------------------------------------------------------------------------------


def list_alive_nodes() -> list[dict[str, Any]]:
    """The nodes that are there."""
    return [node for node in ray.nodes() if node["Alive"]]


def list_node_types() -> list[tuple[NodeResources, int]]:
    """Resources of the nodes that are there or may be started, and how many there may be of each kind."""
    kinds, _ = _load_autoscaler_node_types()
    return [*((resources, 1) for resources in _list_static_nodes(bool(kinds))), *kinds]


def _list_static_nodes(autoscaled: bool) -> list[NodeResources]:
    """Resources of the nodes that no autoscaler starts or ends: all, or the head where it does so with the others."""
    there: list[NodeResources] = [node["Resources"] for node in list_alive_nodes()]
    return [resources for resources in there if not autoscaled or "node:__internal_head__" in resources]


def _load_autoscaler_node_types() -> tuple[list[tuple[NodeResources, int]], int]:
    """The kinds of nodes that an autoscaler may start, where this is the head of its cluster; how many in all."""
    if ray.get_runtime_context().gcs_address != _find_local_cluster():
        return [], 0
    try:
        content = yaml.safe_load(AUTOSCALER_FILE.expanduser().read_text(encoding="utf-8"))
        kinds, most = content["available_node_types"], content.get("max_workers", 0)
        workers = [one for name, one in kinds.items() if name != content["head_node_type"]]
        found = [(one.get("resources", {}), min(one.get("max_workers", 0), most)) for one in workers]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return [], 0
    return [(resources, number) for resources, number in found if number > 0], most


def resolve_resources(requested: Resources) -> dict[str, float]:
    """The resources of a trial on this cluster.

    Raises:
        UserError: if no node of the cluster has them, or could have them.
    """
    kinds = [resources for resources, _ in list_node_types()]
    gpus = requested.gpus
    if gpus is None or gpus == "auto":
        gpus = 1.0 if any(kind.get("GPU", 0) for kind in kinds) else 0.0
    cpus = max(requested.cpus, int(gpus))  # one per rank at least
    if not any(kind.get("CPU", 0) >= cpus and kind.get("GPU", 0) >= gpus for kind in kinds):
        there = "; ".join(sorted(f"{kind.get('CPU', 0):g} CPUs and {kind.get('GPU', 0):g} GPUs" for kind in kinds))
        raise UserError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has: "
            f"{there}; ask for less with resources=Resources(gpus=..., cpus=...)"
        )
    return {"cpu": cpus, "gpu": gpus}


def find_shareable_devices(cpus: int) -> list[tuple[Device, int]]:
    """The GPUs that there are or may be, each with how many trials of so many CPUs it has CPUs for.

    None are shared where one of them is not known.
    """
    found: list[tuple[Device, int]] = []
    for kind, _ in list_node_types():
        if kind.get("GPU", 0):
            names = [
                name.removeprefix(ACCELERATOR_TYPE_PREFIX) for name in kind if name.startswith(ACCELERATOR_TYPE_PREFIX)
            ]
            card = find_device(names[0]) if names else None
            if card is None:
                return []
            found.append((card, int(kind.get("CPU", 0) / kind["GPU"] / cpus)))
    return found


def max_gpu_memory_gib() -> float:
    """Memory of the largest GPU that there is or may be, in GiB, where the nodes tell; 0 where they do not."""
    return max(
        (kind.get(GPU_MEMORY_RESOURCE, 0) / max(kind.get("GPU", 0), 1) for kind, _ in list_node_types()), default=0
    )


def count_concurrent_trials(resources: Mapping[str, float], max_concurrent: int | None) -> int:
    """Trials that run at a time, once all nodes that may be started are there."""

    def count_fitting(node: NodeResources) -> int:
        return int(min(node.get(name.upper(), 0) / amount for name, amount in resources.items() if amount) + 1e-9)

    kinds, most = _load_autoscaler_node_types()
    started = sorted((count_fitting(kind) for kind, number in kinds for _ in range(number)), reverse=True)
    found = sum(map(count_fitting, _list_static_nodes(bool(kinds)))) + sum(started[:most])
    return max(1, min(found, max_concurrent or found))


def compute_memory_fraction(resources: Mapping[str, float]) -> float:
    """A trial's part of a node: the largest of its parts of the node's CPUs and GPUs, on the largest node."""
    parts = [
        max(amount / kind[name.upper()] for name, amount in resources.items() if amount)
        for kind, _ in list_node_types()
        if all(kind.get(name.upper(), 0) >= amount for name, amount in resources.items() if amount)
    ]
    return float(min(1.0, *parts))


def _check_storage_on_node(storage: Storage, nonce: str) -> str:
    """On a node: what is wrong with the storage there."""
    hasty = storage.without_retries()
    try:
        if hasty.read(f"{STORAGE_CHECK_FOLDER}/{nonce}") != nonce:
            return "another file is there under the same name"
        hasty.write(f"{STORAGE_CHECK_FOLDER}/{ray.get_runtime_context().get_node_id()}", nonce)
    except FileNotFoundError:
        return "what was written here is not there"
    except OSError as error:
        return hasty.describe_error(error)
    return ""


def _get_result(object_ref: Any) -> Any:
    try:
        return ray.get(object_ref, timeout=1)
    except ray.exceptions.GetTimeoutError:
        return WorkError(f"it did not answer within {NODE_TIMEOUT_SECONDS:.0f} s")
    except ray.exceptions.RayError as error:
        return WorkError(str(error).strip().splitlines()[-1])


# ---- the token ----------------------------------------------------------------------------------------------------


def _create_auth_token() -> None:
    """Makes the token of a Ray that may be started here, as Ray would itself, but readable by nobody else."""
    file = Path.home() / ".ray" / "auth_token"
    if file.exists():
        file.chmod(0o600)
    elif not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = file.with_name(f".auth_token.{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
        beside.replace(file)  # whole, whoever reads it


RAYLET_MESSAGE_THREAD = "ray_listen_error_messages"
"""Of the command's own process; it prints what raylets say (ray/_private/worker.py)."""


def suppress_raylet_messages() -> contextlib.AbstractContextManager[object]:
    """Nothing of raylets on standard output, while it is entered."""
    return contextlib.redirect_stdout(_RayletMessageFilter(sys.stdout))


def suppress_stdout() -> contextlib.AbstractContextManager[object]:
    """Nothing on standard output, while it is entered."""
    return contextlib.redirect_stdout(io.StringIO())


class _RayletMessageFilter(io.TextIOBase):
    """Standard output without what a thread of Ray's prints there, whatever is asked of it, when a process has died.

    What raylm says of it in a line is enough; Ray's own logs have the rest.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what others print."""
        return len(text) if threading.current_thread().name == RAYLET_MESSAGE_THREAD else self._stream.write(text)

    def flush(self) -> None:
        """See `io.IOBase`."""
        self._stream.flush()

    def isatty(self) -> bool:
        """See `io.IOBase`."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """See `io.IOBase`."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of what is written."""
        return self._stream.encoding
