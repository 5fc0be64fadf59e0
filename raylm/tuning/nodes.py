"""Checks of the nodes of a cluster: that each can use the storage, its GPUs, and the precision."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from raylm import numerics
from raylm.config.trial import Resources
from raylm.errors import UserError
from raylm.events import Notify
from raylm.planning.devices import is_mig
from raylm.results.storage import STORAGE_HINT, Storage
from raylm.tuning import ray_private
from raylm.tuning.cluster import list_alive_nodes, run_on_nodes
from raylm.tuning.connection.session import inspect_local_gpus
from raylm.tuning.resources.capacity import Capacity

if TYPE_CHECKING:
    from raylm.training.device import GpuReport

CHECK_FOLDER = ".seen"
"""Folder of the files that a storage check writes."""


def check_storage(storage: Storage) -> None:
    """Check that every node can read what this machine wrote to the storage, and the reverse.

    Raises:
        UserError: if a node cannot; the error names all such nodes.
    """
    problems = find_storage_problems(storage)
    if problems:
        lines = "; ".join(f"{host}: {problem}" for host, problem in sorted(problems.items()))
        raise UserError(
            f"every node of the cluster must be able to use the storage {storage.uri}, but: {lines}; "
            f"use a bucket or a shared folder: {STORAGE_HINT}"
        )


def find_storage_problems(storage: Storage) -> dict[str, str]:
    """Return the storage problems of all nodes but this machine, by host name; empty if there are none."""
    driver_node, nonce = ray.get_runtime_context().get_node_id(), secrets.token_hex(8)
    others = [node for node in list_alive_nodes() if node["NodeID"] != driver_node]
    if not others:
        return {}
    storage.write(f"{CHECK_FOLDER}/{nonce}", nonce)
    try:
        problems = run_on_nodes(others, _check_on_node, storage, nonce)
        for node in others:
            if not problems[node["NodeID"]] and not storage.has_text(f"{CHECK_FOLDER}/{node['NodeID']}", nonce):
                problems[node["NodeID"]] = "a file written there is not visible here"
    finally:
        storage.remove(CHECK_FOLDER)
    return {node["NodeManagerHostname"]: problem for node in others if (problem := str(problems[node["NodeID"]]))}


def _check_on_node(storage: Storage, nonce: str) -> str:
    """Return the storage problem of the node that this runs on, or an empty string; writes a file for the driver."""
    storage = storage.without_retries()
    try:
        if storage.read(f"{CHECK_FOLDER}/{nonce}") != nonce:
            return "a different file has the same name there"
        storage.write(f"{CHECK_FOLDER}/{ray.get_runtime_context().get_node_id()}", nonce)
    except FileNotFoundError:
        return "a file written here is not visible there"
    except OSError as error:
        return storage.describe_error(error)
    return ""


# ---- GPUs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeGpus:
    """GPUs of a node by Ray's count, and by torch."""

    host: str
    count: float
    report: GpuReport

    @property
    def trains_alone(self) -> bool:
        """True if torch can use one of these GPUs, but not together with another."""
        from raylm.training.device import ABILITIES

        return not self.report.problem and not ABILITIES[self.report.device].process_group

    def __str__(self) -> str:
        return f"{self.host} (Ray counts {self.count:g}): {self.report.problem}"


def list_local_gpus() -> list[NodeGpus]:
    """Return the GPUs of this machine, on which Ray does not run yet; empty if neither Ray nor torch finds any."""
    count, report = ray_private.count_gpus(), inspect_local_gpus()
    return [NodeGpus("this machine", count, report)] if report and (count or report.names) else []


def list_gpus() -> list[NodeGpus]:
    """Return the GPUs of each node of the connected cluster that has any.

    Raises:
        UserError: if a node does not answer.
    """
    from raylm.training.device import inspect_gpus

    nodes = [node for node in list_alive_nodes() if node["Resources"].get("GPU", 0)]
    reports = run_on_nodes(nodes, inspect_gpus)
    found = []
    for node in nodes:
        host, report = str(node["NodeManagerHostname"]), reports[node["NodeID"]]
        if isinstance(report, Exception):
            raise UserError(f"cannot ask {host} for its GPUs: {report}; run `raylm doctor` for a diagnosis")
        found.append(NodeGpus(host, node["Resources"]["GPU"], report))
    return found


def resolve_gpus(requested: Resources, nodes: Sequence[NodeGpus], notify: Notify, *, more: bool = False) -> Resources:
    """Return the resources that trials request, with a GPU only if torch can use those that Ray counts.

    Ray also counts GPUs that torch cannot use: Intel's, any under a build of torch for CPUs or with a driver that is
    too old. A part of a GPU (MIG) is not shared further: its speed and memory are not known.

    Args:
        nodes: GPUs of all nodes that have any.
        notify: shows a note to the user.
        more: True if the cluster may start other nodes with GPUs.

    Raises:
        UserError: if a trial would be placed on a GPU that torch cannot use.
    """
    unusable = [node for node in nodes if node.report.problem]
    is_open = requested.gpus in (None, "auto")
    alone = [node for node in nodes if node.trains_alone]
    if alone and isinstance(requested.gpus, float) and requested.gpus > 1:
        name, host = alone[0].report.names[0], alone[0].host
        raise UserError(
            f"resources: got gpus={requested.gpus:g}, but {name} of {host} does not train together with another GPU; "
            "expected gpus=1"
        )
    if unusable and requested.gpus != 0:
        problems = "; ".join(map(str, unusable))
        if not is_open or more or len(unusable) < len(nodes):
            raise UserError(
                f"resources: trials use GPUs, but torch cannot use those of {problems}; correct that, start Ray there "
                "with --num-gpus=0, or train on CPUs with resources=Resources(gpus=0)"
            )
        notify(f"warning: trials run on the CPU, because torch cannot use the GPUs of {problems}")
    if is_open and not more and len(unusable) == len(nodes):
        return replace(requested, gpus=0.0)
    has_parts = any(is_mig(name) for node in nodes for name in node.report.names)
    return replace(requested, gpus=None) if requested.gpus == "auto" and has_parts else requested


# ---- precision ----------------------------------------------------------------------------------------------------


def resolve_cpu_precision(requested: str) -> str:
    """Return the precision of trials on this machine's CPU, without torch.

    Raises:
        UserError: if a precision of 16 bits is requested that the CPU does not have.
    """
    supported = ("bfloat16",) if numerics.cpu_has_bfloat16() else ()
    if requested not in (*supported, "float32", "auto"):
        from raylm.training import device

        return device.resolve_precision(requested, "cpu")
    return numerics.resolve_precision(requested, [supported])


def check_local_precision(requested: str, *, on_cpu: bool) -> None:
    """Raise a UserError if this machine's GPU, or its CPU, does not have the precision that is requested."""
    if on_cpu:
        resolve_cpu_precision(requested)
        return
    from raylm.training import device

    device.resolve_precision(requested, device.choose_device())


def resolve_precision(requested: str, resources: Mapping[str, float], capacity: Capacity) -> str:
    """Return the precision of all trials of a launch.

    Args:
        requested: a precision, or `auto`: on GPUs the first of bfloat16 and float16 that all types of the cluster have.

    Returns:
        The precision; `auto` only if the cluster has GPUs of an unknown type on another machine: each trial then asks
        its own GPU.

    Raises:
        UserError: if a precision of 16 bits is requested on a CPU or a GPU without it.
    """
    if not resources["gpu"]:
        return resolve_cpu_precision(requested)  # CPUs of a cluster are assumed to be alike
    gpus = [gpu for _, gpu in capacity.list_gpus()]
    known = [gpu for gpu in gpus if gpu]
    if emulated := [gpu.name for gpu in known if requested not in (*gpu.half_precisions, "float32", "auto")]:
        raise UserError(f"precision: {requested} would be emulated on {emulated[0]}; expected float32, or auto")
    if capacity.has_one_node and None in gpus:
        from raylm.training import device

        return device.resolve_precision(requested, device.choose_device())
    if requested == "auto" and (None in gpus or not gpus):
        return "auto"
    return numerics.resolve_precision(requested, [gpu.half_precisions for gpu in known])
