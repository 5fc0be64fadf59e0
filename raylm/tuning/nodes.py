"""Functions run on every node of the cluster."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.errors import UserError
from raylm.results.storage import STORAGE_HINT, Storage
from raylm.tuning.cluster import (
    NODE_TIMEOUT_SECONDS,
    STORAGE_CHECK_FOLDER,
    _check_storage_on_node,
    _get_result,
    list_alive_nodes,
)

# ---- the storage, seen from the nodes -----------------------------------------------------------------------------


def check_storage(storage: Storage) -> None:
    """Has each node read what was written here, write, and remove it again.

    Raises:
        UserError: naming the nodes that cannot.
    """
    problems = find_storage_problems(storage)
    if problems:
        lines = "; ".join(f"{host}: {problem}" for host, problem in sorted(problems.items()))
        raise UserError(
            f"the storage {storage.uri} must be seen by every node of the cluster, and is not: {lines}; "
            f"take a bucket or a folder that they share: {STORAGE_HINT}"
        )


def find_storage_problems(storage: Storage) -> dict[str, str]:
    """What is wrong with the storage, by the name of the node that it is seen from; this machine is not asked."""
    here, word = ray.get_runtime_context().get_node_id(), secrets.token_hex(8)
    others = [node for node in list_alive_nodes() if node["NodeID"] != here]
    if not others:
        return {}
    storage.write(f"{STORAGE_CHECK_FOLDER}/{word}", word)
    try:
        problems = run_on_nodes(others, _check_storage_on_node, storage, word)
        for node in others:
            if not problems[node["NodeID"]] and not storage.has_text(f"{STORAGE_CHECK_FOLDER}/{node['NodeID']}", word):
                problems[node["NodeID"]] = "what was written there is not here"
    finally:
        storage.remove(STORAGE_CHECK_FOLDER)
    return {node["NodeManagerHostname"]: problem for node in others if (problem := str(problems[node["NodeID"]]))}


def run_on_nodes(
    target_nodes: Sequence[Mapping[str, Any]], function: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """What a function returns on each of these nodes, by the node's id; an error where it raises or does not end."""
    asked = {}
    for node in target_nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(num_cpus=0, max_retries=1)(function).options(scheduling_strategy=there)
        asked[node["NodeID"]] = remote.remote(*arguments)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_SECONDS)
    return {node: _get_result(reference) for node, reference in asked.items()}
