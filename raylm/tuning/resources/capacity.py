"""Capacity of a cluster: resources of a trial, and the number and kind of nodes that can run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray

from raylm.config.trial import Resources
from raylm.errors import UserError
from raylm.planning.devices import Device, find_device
from raylm.tuning.cluster import list_alive_nodes
from raylm.tuning.resources.autoscaler import (
    GPU_MEMORY_RESOURCE,
    HEAD_RESOURCE,
    NO_AUTOSCALER,
    Autoscaler,
    NodeResources,
    describe_node,
    find_autoscaler,
)
from raylm.units import pluralize

ACCELERATOR_TYPE_PREFIX = "accelerator_type:"
"""Prefix of the resource with which Ray names the type of a node's GPUs."""


@dataclass(frozen=True)
class Capacity:
    """Nodes of a cluster for trials: those that run, and those that are to come."""

    nodes: Sequence[NodeResources]
    """Resources of the nodes that run."""
    autoscaler: Autoscaler = NO_AUTOSCALER
    """Nodes that can be started."""
    waits_for_workers: bool = False
    """True if the user expects workers that no autoscaler tells of (`--wait-for-workers`)."""
    is_local: bool = False
    """True if raylm has started Ray on this machine: no node joins."""

    # ---- nodes ----------------------------------------------------------------------------------------------------

    @property
    def kinds(self) -> list[NodeResources]:
        """Resources of the nodes that run, and of one node of each type that can be started."""
        return [*self.nodes, *(node_type.resources for node_type in self.autoscaler.types)]

    @property
    def has_one_node(self) -> bool:
        """True if the cluster has one node and cannot grow."""
        return len(self.nodes) == 1 and not self.autoscaler.types and not self.waits_for_workers

    @property
    def may_start_gpus(self) -> bool:
        """True if nodes with GPUs may be started or join."""
        types = self.autoscaler.types
        return self.waits_for_workers or any(node_type.resources.get("GPU", 0) for node_type in types)

    def list_gpus(self) -> list[tuple[NodeResources, Device | None]]:
        """Return the kinds of nodes with GPUs, each with its GPU, or None for a GPU that is not in `DEVICES`."""
        return [(node, _find_gpu(node)) for node in self.kinds if node.get("GPU", 0)]

    def max_gpu_memory_gib(self) -> float:
        """Return the memory of the largest GPU in GiB, or 0 if the nodes do not declare it."""
        return max((node.get(GPU_MEMORY_RESOURCE, 0) / max(node.get("GPU", 0), 1) for node in self.kinds), default=0)

    def find_shareable_devices(self, cpus: int) -> list[tuple[Device, int]]:
        """Return the GPUs, each with the number of trials that its share of the node's CPUs suffices for.

        Args:
            cpus: CPUs of a trial.

        Returns:
            An empty list if any GPU is of an unknown type: trials share none then.
        """
        nodes = self.list_gpus()
        found = [(gpu, int(node.get("CPU", 0) / node["GPU"] / cpus)) for node, gpu in nodes if gpu is not None]
        return found if len(found) == len(nodes) else []

    # ---- a trial --------------------------------------------------------------------------------------------------

    def resolve_resources(self, requested: Resources) -> dict[str, float]:
        """Return the resources of a trial, `cpu` and `gpu`, by the GPUs that Ray counts or can start.

        Raises:
            UserError: if no node has them or could have them.
        """
        gpus = requested.gpus
        if gpus is None or gpus == "auto":
            gpus = 1.0 if self.may_start_gpus or any(node.get("GPU", 0) for node in self.nodes) else 0.0
        resources = {"cpu": max(requested.cpus, int(gpus)), "gpu": gpus}  # at least one CPU per rank
        if not self.waits_for_workers and not any(_fits(resources, node) for node in self.kinds):
            raise UserError(self._describe_lack(resources))
        return resources

    def _describe_lack(self, resources: Mapping[str, float]) -> str:
        """Return that no node has the resources of a trial, what there is, and what to do."""
        offered = [f"nodes: {'; '.join(sorted(set(map(describe_node, self.nodes)))) or 'none'}"]
        startable = ""
        if self.autoscaler.types:
            startable = " and none that its autoscaler can start"
            offered.append(f"node types of the autoscaler: {self.autoscaler}")
        if self.autoscaler.problem:
            offered.append(f"node types of the autoscaler are not known: {self.autoscaler.problem}")
        advice = "request less with resources=Resources(gpus=..., cpus=...)"
        if not self.is_local:
            advice += ", or run with --wait-for-workers if such nodes are to join"
        request = f"a trial requests {resources['cpu']:g} CPUs and {resources['gpu']:g} GPUs"
        return f"{request}, which no node of the cluster has{startable} ({'; '.join(offered)}); {advice}"

    def notes(self, resources: Mapping[str, float]) -> Iterator[str]:
        """Yield notes to the user on workers that are to come."""
        if self.autoscaler.problem and not resources["gpu"]:
            problem = self.autoscaler.problem
            yield f"warning: the autoscaler's node types are not known, and trials run on CPUs: {problem}"
        if wait := self.describe_wait(resources):
            yield wait

    def describe_wait(self, resources: Mapping[str, float]) -> str | None:
        """Return that trials wait for a worker, which one, and how to end it; None if a running node can run them."""
        if any(_fits(resources, node) for node in self.nodes):
            return None
        amounts = [pluralize(int(resources["cpu"]), "CPU")]
        if resources["gpu"]:
            amounts.append(f"{resources['gpu']:g} {'GPU' if resources['gpu'] <= 1 else 'GPUs'}")
        worker = f"trials wait for a worker with {' and '.join(amounts)}"
        types = [node_type for node_type in self.autoscaler.types if _fits(resources, node_type.resources)]
        if types:
            listed = ", ".join(f"{node_type.name} (up to {node_type.max_count})" for node_type in types)
            return f"{worker}, which the autoscaler starts: {listed}; Ctrl-C pauses the sweep"
        on_cpus = "; resources=Resources(gpus=0) trains on CPUs" if resources["gpu"] else ""
        return f"{worker} to join the cluster; Ctrl-C pauses the sweep{on_cpus}"

    def count_concurrent_trials(self, resources: Mapping[str, float], max_concurrent: int | None) -> int:
        """Return the number of concurrent trials once the autoscaler has started all nodes, at least 1.

        Args:
            resources: resources of a trial, as `resolve_resources` returns them.
            max_concurrent: upper limit; None: unlimited.
        """
        types, remaining = self.autoscaler.types, self.autoscaler.max_workers
        stay = [node for node in self.nodes if HEAD_RESOURCE in node or not any(t.describes(node) for t in types)]
        total = sum(_count_fitting(resources, node) for node in stay)
        by_type = [(_count_fitting(resources, node_type.resources), node_type.max_count) for node_type in types]
        for fitting, number in sorted(by_type, reverse=True):
            started = min(number, remaining)
            total, remaining = total + fitting * started, remaining - started
        if self.waits_for_workers and max_concurrent:
            return max_concurrent
        return max(1, min(total, max_concurrent or total))

    def compute_memory_fraction(self, resources: Mapping[str, float]) -> float:
        """Return a trial's fraction of the memory of its node, 0 to 1; 0 if no node that can run it is known yet.

        It is the larger of its fractions of the node's CPUs and GPUs, on the node where that is smallest.
        """
        fractions = [compute_share(resources, node) for node in self.kinds if _fits(resources, node)]
        return min(1.0, *fractions) if fractions else 0.0


def find_capacity(*, is_local: bool, waits_for_workers: bool = False) -> Capacity:
    """Return the capacity of the connected cluster.

    Args:
        is_local: raylm has started Ray on this machine.
        waits_for_workers: the user expects workers that no autoscaler tells of.
    """
    nodes = [node["Resources"] for node in list_alive_nodes()]
    autoscaler = NO_AUTOSCALER if is_local else find_autoscaler()
    return Capacity(nodes, autoscaler, waits_for_workers and not is_local, is_local)


def compute_own_share(cpus: float, gpus: float) -> float:
    """Return the fraction of the memory of the node that this runs on, 0 to 1, for a process with CPUs and GPUs."""
    node_id = ray.get_runtime_context().get_node_id()
    node = next(node for node in list_alive_nodes() if node["NodeID"] == node_id)
    return min(1.0, compute_share({"cpu": cpus, "gpu": gpus}, node["Resources"]))


def compute_share(resources: Mapping[str, float], node: NodeResources) -> float:
    """Return the larger of a trial's fractions of a node's CPUs and GPUs."""
    return max(amount / node[name.upper()] for name, amount in resources.items() if amount)


def _find_gpu(node: NodeResources) -> Device | None:
    prefix = ACCELERATOR_TYPE_PREFIX
    names = [name.removeprefix(prefix) for name in node if name.startswith(prefix)]
    return find_device(names[0]) if names else None


def _requests(resources: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    return ((name.upper(), amount) for name, amount in resources.items() if amount)


def _fits(resources: Mapping[str, float], node: NodeResources) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in _requests(resources))


def _count_fitting(resources: Mapping[str, float], node: NodeResources) -> int:
    return int(min(node.get(name, 0) / amount for name, amount in _requests(resources)) + 1e-9)
