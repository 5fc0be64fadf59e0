"""Resources of a Ray cluster: its nodes, those that its autoscaler may start, and what a trial gets of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from raylm.config.trial import Resources
from raylm.errors import UserError
from raylm.planning.devices import Device, find_device
from raylm.tuning.connection.session import find_local_cluster

AUTOSCALER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Configuration that `ray up` writes on the head node, with the node types that it may start."""
GPU_MEMORY_RESOURCE = "gpu_gib"
"""Custom resource in which nodes declare the memory of all their GPUs together, in GiB."""
ACCELERATOR_TYPE_PREFIX = "accelerator_type:"
"""Prefix of the resource with which Ray names the type of a node's GPUs."""

NodeResources = Mapping[str, float]
"""Resources of a node by Ray's names: `CPU`, `GPU`, and custom ones."""


# ---- nodes --------------------------------------------------------------------------------------------------------


def list_alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def alive_node_ids() -> set[str]:
    """Return the ids of the nodes that are alive."""
    return {str(node["NodeID"]) for node in list_alive_nodes()}


def list_node_types() -> list[tuple[NodeResources, int]]:
    """Return the resources of nodes that are alive or may be started, with the number of nodes of each type."""
    types, _ = _load_autoscaler_node_types()
    return [*((resources, 1) for resources in _list_static_nodes(bool(types))), *types]


def has_one_node() -> bool:
    """Return whether the cluster has one node and cannot grow."""
    return sum(number for _, number in list_node_types()) == 1


def list_gpu_nodes() -> list[tuple[NodeResources, Device | None]]:
    """Return the node types with GPUs, each with its GPU, or None for a GPU that is not in `DEVICES`."""
    nodes = [resources for resources, _ in list_node_types() if resources.get("GPU", 0)]
    return [(resources, _find_gpu(resources)) for resources in nodes]


def can_start_gpus() -> bool:
    """Return whether the autoscaler may start nodes with GPUs."""
    return any(resources.get("GPU", 0) for resources, _ in _load_autoscaler_node_types()[0])


def _find_gpu(resources: NodeResources) -> Device | None:
    prefix = ACCELERATOR_TYPE_PREFIX
    names = [name.removeprefix(prefix) for name in resources if name.startswith(prefix)]
    return find_device(names[0]) if names else None


def _list_static_nodes(autoscaled: bool) -> list[NodeResources]:
    """Return the resources of nodes that no autoscaler manages: all nodes, or the head of an autoscaled cluster."""
    alive: list[NodeResources] = [node["Resources"] for node in list_alive_nodes()]
    return [resources for resources in alive if not autoscaled or "node:__internal_head__" in resources]


def _load_autoscaler_node_types() -> tuple[list[tuple[NodeResources, int]], int]:
    """Return the node types that the autoscaler may start with the limit of each, and the limit of all together.

    The list is empty unless this machine is the head of the connected cluster.
    """
    if ray.get_runtime_context().gcs_address != find_local_cluster():
        return [], 0
    try:
        content = yaml.safe_load(AUTOSCALER_FILE.expanduser().read_text(encoding="utf-8"))
        types, max_workers = content["available_node_types"], content.get("max_workers", 0)
        workers = [node_type for name, node_type in types.items() if name != content["head_node_type"]]
        found = [(worker.get("resources", {}), min(worker.get("max_workers", 0), max_workers)) for worker in workers]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return [], 0
    return [(resources, number) for resources, number in found if number > 0], max_workers


# ---- resources of a trial -----------------------------------------------------------------------------------------


def resolve_resources(requested: Resources) -> dict[str, float]:
    """Return the resources of a trial on this cluster, `cpu` and `gpu`, by the GPUs that Ray counts.

    Raises:
        UserError: if no node of the cluster has them or could have them.
    """
    nodes = [resources for resources, _ in list_node_types()]
    gpus = requested.gpus
    if gpus is None or gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    cpus = max(requested.cpus, int(gpus))  # at least one per rank
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        offered = "; ".join(sorted(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes))
        raise UserError(
            f"a trial requests {cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has (nodes: {offered}); "
            "request less with resources=Resources(gpus=..., cpus=...)"
        )
    return {"cpu": cpus, "gpu": gpus}


def find_shareable_devices(cpus: int) -> list[tuple[Device, int]]:
    """Return the GPUs of the cluster, each with the number of trials that its share of the node's CPUs suffices for.

    Args:
        cpus: CPUs of a trial.

    Returns:
        An empty list if any GPU is of an unknown type: trials share none then.
    """
    nodes = list_gpu_nodes()
    found = [(gpu, int(node.get("CPU", 0) / node["GPU"] / cpus)) for node, gpu in nodes if gpu is not None]
    return found if len(found) == len(nodes) else []


def max_gpu_memory_gib() -> float:
    """Return the memory of the cluster's largest GPU in GiB, or 0 if the nodes do not declare it."""
    nodes = [resources for resources, _ in list_node_types()]
    return max((node.get(GPU_MEMORY_RESOURCE, 0) / max(node.get("GPU", 0), 1) for node in nodes), default=0)


def count_concurrent_trials(resources: Mapping[str, float], max_concurrent: int | None) -> int:
    """Return the number of concurrent trials once the autoscaler has started all nodes, at least 1.

    Args:
        resources: resources of a trial, as `resolve_resources` returns them.
        max_concurrent: upper limit; None: unlimited.
    """

    def count_fitting(node: NodeResources) -> int:
        return int(min(node.get(name.upper(), 0) / amount for name, amount in resources.items() if amount) + 1e-9)

    types, max_workers = _load_autoscaler_node_types()
    on_workers = sorted((count_fitting(node) for node, number in types for _ in range(number)), reverse=True)
    total = sum(map(count_fitting, _list_static_nodes(bool(types)))) + sum(on_workers[:max_workers])
    return max(1, min(total, max_concurrent or total))


def compute_memory_fraction(resources: Mapping[str, float]) -> float:
    """Return a trial's fraction of the memory of its node, 0 to 1.

    It is the larger of its fractions of the node's CPUs and GPUs, on the node where that is smallest.
    """
    fractions = [
        max(amount / node[name.upper()] for name, amount in resources.items() if amount)
        for node, _ in list_node_types()
        if all(node.get(name.upper(), 0) >= amount for name, amount in resources.items() if amount)
    ]
    return float(min(1.0, *fractions))
