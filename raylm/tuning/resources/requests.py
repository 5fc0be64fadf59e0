"""Resources that a trial requests of Ray: one bundle per rank, with the memory of its GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray import tune

from raylm import numerics
from raylm.config.catalog import ModelShape
from raylm.config.trial import TrialConfig
from raylm.planning import memory
from raylm.tuning.resources.autoscaler import GPU_MEMORY_RESOURCE
from raylm.units import GIB


def resolve_world_size(resources: Mapping[str, float]) -> int:
    """Return the number of processes that train a trial: one per GPU, at least one."""
    return max(1, int(resources["gpu"]))


def build_placement_group(resources: Mapping[str, float], gpu_memory_gib: int = 0) -> tune.PlacementGroupFactory:
    """Return one bundle per rank, all on one node; the first has the CPUs that cannot be divided evenly.

    Args:
        gpu_memory_gib: memory that each GPU must have, on clusters whose nodes declare theirs; 0: any.
    """
    ranks = resolve_world_size(resources)
    per_rank = {"CPU": resources["cpu"] // ranks, "GPU": resources["gpu"] / ranks}
    per_rank |= {GPU_MEMORY_RESOURCE: gpu_memory_gib} if gpu_memory_gib else {}
    first = {**per_rank, "CPU": per_rank["CPU"] + resources["cpu"] % ranks}
    return tune.PlacementGroupFactory([first, *[per_rank] * (ranks - 1)], strategy="STRICT_PACK")


def estimate_gpu_memory_gib(
    trial: TrialConfig, shape: ModelShape | None, precision: str, max_gib: float, world_size: int = 1
) -> int:
    """Return the GPU memory that a trial needs without recomputing activations, in GiB, at most `max_gib`.

    Args:
        shape: shape of its model; None (unknown): the trial needs the largest GPU.
        precision: the precision, or `auto` for the one that needs the most.
        max_gib: memory of the cluster's largest GPU.
    """
    if shape is None:
        return int(max_gib)
    precisions = ("float32", *numerics.HALF_PRECISIONS) if precision == "auto" else (precision,)
    memory_models = [memory.MemoryModel(shape, trial, "cuda", kind, world_size) for kind in precisions]
    needed = max(model.min_bytes(recompute=False) for model in memory_models)
    return min(math.ceil(needed / memory.USABLE_MEMORY_FRACTION / GIB), int(max_gib))
