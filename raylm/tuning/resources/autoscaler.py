"""Node types that a cluster's autoscaler can start, from the state of the cluster or the autoscaler's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raylm.tuning.cluster import list_alive_nodes, run_on_nodes
from raylm.tuning.resources import ray_autoscaler

GPU_MEMORY_RESOURCE = "gpu_gib"
"""Custom resource in which nodes declare the memory of all their GPUs together, in GiB."""
HEAD_RESOURCE = "node:__internal_head__"
"""Resource that Ray gives to the head of a cluster."""
DESCRIBED = ("CPU", "GPU", GPU_MEMORY_RESOURCE)
"""Resources by which a running node is recognized as one of a type."""
UNLIMITED = 100
"""Number of nodes that a type without a maximum is taken to have."""

NodeResources = Mapping[str, float]
"""Resources of a node by Ray's names: `CPU`, `GPU`, and custom ones."""


@dataclass(frozen=True)
class NodeType:
    """Type of nodes that the autoscaler can start."""

    name: str
    resources: NodeResources
    max_count: int
    """Maximum number of nodes of this type at once."""

    def __str__(self) -> str:
        return f"{self.name} with {describe_node(self.resources)}, up to {self.max_count}"

    def describes(self, node: NodeResources) -> bool:
        """Return whether a running node may be of this type."""
        return all(node.get(name, 0) == self.resources[name] for name in DESCRIBED if name in self.resources)


@dataclass(frozen=True)
class Autoscaler:
    """Nodes that the autoscaler of a cluster can start; `NO_AUTOSCALER` if it has none."""

    types: Sequence[NodeType] = ()
    max_workers: int = 0
    """Maximum number of nodes of all types together."""
    problem: str = ""
    """Reason for which the node types are not known, on a cluster that has some."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.types))


NO_AUTOSCALER = Autoscaler()


def describe_node(resources: NodeResources) -> str:
    """Return the CPUs and GPUs of a node."""
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def find_autoscaler() -> Autoscaler:
    """Return the node types of the connected cluster; none if it has no autoscaler, or one that does not tell them.

    They are in the cluster's state (Anyscale), or in the autoscaler's configuration, which is read on the head: the
    file given to `ray start --head --autoscaling-config`, as by `ray up`, or the RayCluster on Kubernetes.
    """
    if reported := ray_autoscaler.reported_node_types():
        types = [NodeType(name, resources, n if n >= 0 else UNLIMITED) for name, resources, n in reported if n]
        return Autoscaler(types, sum(node_type.max_count for node_type in types))
    head = next((node for node in list_alive_nodes() if HEAD_RESOURCE in node["Resources"]), None)
    if head is None:
        return NO_AUTOSCALER
    context = ray.get_runtime_context()
    port = int(context.gcs_address.rpartition(":")[2])
    if head["NodeID"] == context.get_node_id():
        found: Any = ray_autoscaler.read_autoscaler_config(port)
    else:
        found = run_on_nodes([head], ray_autoscaler.read_autoscaler_config, port)[head["NodeID"]]
    if isinstance(found, Exception):
        return Autoscaler(problem=f"the head {head['NodeManagerHostname']} does not tell them: {found}")
    config, problem = found
    return Autoscaler(problem=problem) if config is None else parse_config(config)


def parse_config(config: Mapping[str, Any]) -> Autoscaler:
    """Return the node types of an autoscaler's configuration, without the head's and those that are never started.

    Args:
        config: a file for `ray up`, or Ray's equivalent of a RayCluster.
    """
    limit, types = config.get("max_workers"), []
    for name, found in (config.get("available_node_types") or {}).items():
        number = min((n for n in (found.get("max_workers"), limit) if n is not None), default=UNLIMITED)
        if name != config.get("head_node_type") and number > 0:
            types.append(NodeType(name, found.get("resources") or {}, number))
    return Autoscaler(types, sum(node_type.max_count for node_type in types) if limit is None else limit)
