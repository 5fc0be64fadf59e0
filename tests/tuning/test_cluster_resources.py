"""Resources that a cluster has for trials, and that its autoscaler may start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylm.config.options import RunOptions
from raylm.config.trial import Resources
from raylm.errors import UserError
from raylm.tuning.connection.session import check_start
from raylm.tuning.resources.autoscaler import Autoscaler, NodeType, parse_config
from raylm.tuning.resources.capacity import Capacity

HEAD = {"CPU": 2.0, "node:__internal_head__": 1.0}
SMALL, LARGE = {"CPU": 4, "GPU": 1, "gpu_gib": 22}, {"CPU": 16, "GPU": 2, "gpu_gib": 158}
GROWING = Capacity([HEAD], Autoscaler([NodeType("small", SMALL, 8), NodeType("large", LARGE, 2)], 3))
"""A head with CPUs, and GPU workers from zero."""
GPU = {"cpu": 2, "gpu": 1.0}


def test_autoscalers_own_limit_counts() -> None:
    """Three workers at most, of two types of which there may be eight and two: the most that three can run."""
    node_types = {
        "head": {"resources": {"CPU": 0}},
        "small": {"max_workers": 8, "resources": SMALL},
        "large": {"max_workers": 2, "resources": LARGE},
        "off": {"max_workers": 0, "resources": LARGE},
    }
    content = {"max_workers": 3, "head_node_type": "head", "available_node_types": node_types}
    autoscaler = parse_config(content)
    assert autoscaler == Autoscaler([NodeType("small", SMALL, 3), NodeType("large", LARGE, 2)], 3)
    capacity = Capacity([{"node:__internal_head__": 1.0}], autoscaler)
    limits = ((GPU, None), ({"cpu": 2, "gpu": 0.0}, None), ({"cpu": 2, "gpu": 0.0}, 3))
    assert [capacity.count_concurrent_trials(resources, limit) for resources, limit in limits] == [5, 18, 3]
    assert capacity.max_gpu_memory_gib() == 79.0
    running = replace(capacity, nodes=[*capacity.nodes, {**SMALL, "memory": 1.0}])
    assert running.count_concurrent_trials(GPU, None) == 5, "a running worker is one of those that can be started"
    assert replace(running, nodes=[*running.nodes, {"CPU": 8.0, "GPU": 4.0}]).count_concurrent_trials(GPU, None) == 9


@pytest.mark.parametrize("gpus", [None, "auto"])
def test_trials_take_gpus_that_are_to_come_rather_than_cpus_of_the_head(gpus: object) -> None:
    resources = GROWING.resolve_resources(Resources(gpus=gpus))  # type: ignore[arg-type]
    assert resources == {"cpu": 1, "gpu": 1.0}
    assert list(GROWING.notes(resources)) == [
        "trials wait for a worker with 1 CPU and 1 GPU, which the autoscaler starts: small (up to 8), large (up to 2); "
        "Ctrl-C pauses the sweep"
    ]
    assert not list(replace(GROWING, nodes=[HEAD, SMALL]).notes(resources)), "a worker is there"
    on_cpus = GROWING.resolve_resources(Resources(gpus=0))
    assert on_cpus == {"cpu": 1, "gpu": 0.0} and not list(GROWING.notes(on_cpus))
    assert GROWING.compute_memory_fraction(resources) == 0.5, "half of the machine with two GPUs"


def test_resources_that_neither_nodes_nor_node_types_have_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        GROWING.resolve_resources(Resources(gpus=4))
    assert str(refused.value) == (
        "a trial requests 4 CPUs and 4 GPUs, which no node of the cluster has and none that its autoscaler can start "
        "(nodes: 2 CPUs and 0 GPUs; node types of the autoscaler: small with 4 CPUs and 1 GPUs, up to 8; large with 16 "
        "CPUs and 2 GPUs, up to 2); request less with resources=Resources(gpus=..., cpus=...), or run with "
        "--wait-for-workers if such nodes are to join"
    )
    with pytest.raises(UserError, match=r"not known: no answer\); request less .* or run with --wait-for-workers"):
        Capacity([HEAD], Autoscaler(problem="no answer")).resolve_resources(Resources(gpus=1))
    with pytest.raises(UserError, match=r"cpus=\.\.\.\)$"):  # nothing can join
        Capacity([HEAD], is_local=True).resolve_resources(Resources(gpus=1))


def test_a_user_can_wait_for_workers_that_nothing_tells_of() -> None:
    capacity = Capacity([HEAD], waits_for_workers=True)
    resources = capacity.resolve_resources(Resources())
    assert resources == {"cpu": 1, "gpu": 1.0}
    (note,) = capacity.notes(resources)
    assert note.startswith("trials wait for a worker with 1 CPU and 1 GPU to join the cluster; Ctrl-C pauses the sweep")
    assert note.endswith("resources=Resources(gpus=0) trains on CPUs")
    assert capacity.resolve_resources(Resources(gpus=0, cpus=64)) == {"cpu": 64, "gpu": 0.0}
    assert not capacity.has_one_node and capacity.compute_memory_fraction(resources) == 0.0
    assert [capacity.count_concurrent_trials(resources, limit) for limit in (None, 6)] == [1, 6]


def test_cpus_are_not_taken_silently_if_node_types_cannot_be_read() -> None:
    capacity = Capacity([HEAD], Autoscaler(problem="HTTPError: 500"))
    assert list(capacity.notes(capacity.resolve_resources(Resources()))) == [
        "warning: the autoscaler's node types are not known, and trials run on CPUs: HTTPError: 500"
    ]


def test_waiting_on_this_machine_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"--wait-for-workers: there is no cluster that workers could join"):
        check_start(RunOptions(address="local", wait_for_workers=True), cpus=1)
