"""Nodes of the connected Ray cluster: their list, and functions that run on each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.errors import WorkError

NODE_TIMEOUT_SECONDS = 60.0
"""Time limit of a function on a node, including the start of its process."""


def list_alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def alive_node_ids() -> set[str]:
    """Return the ids of the nodes that are alive."""
    return {str(node["NodeID"]) for node in list_alive_nodes()}


def run_on_nodes(
    target_nodes: Sequence[Mapping[str, Any]], function: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """Run a function on each of these nodes.

    Returns:
        Results by node id; a `WorkError` for a node on which it raised or did not return in `NODE_TIMEOUT_SECONDS`.
    """
    results = {}
    for node in target_nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(num_cpus=0, max_retries=1)(function).options(scheduling_strategy=on_node)
        results[node["NodeID"]] = remote.remote(*arguments)
    ray.wait(list(results.values()), num_returns=len(results), timeout=NODE_TIMEOUT_SECONDS)
    return {node_id: _get_result(reference) for node_id, reference in results.items()}


def _get_result(object_ref: Any) -> Any:
    try:
        return ray.get(object_ref, timeout=1)
    except ray.exceptions.GetTimeoutError:
        return WorkError(f"no answer within {NODE_TIMEOUT_SECONDS:.0f} s")
    except ray.exceptions.RayError as error:
        return WorkError(str(error).strip().splitlines()[-1])
