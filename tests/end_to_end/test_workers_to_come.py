"""Sweeps on a head whose workers start from zero: Ray's own autoscaler, with a provider that starts raylets here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_autoscaler import start_autoscaling_cluster
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray_cluster import run_on_cluster

from raylm import Resources, Sweep, UserError, load_results
from raylm.cli.doctor import _check_autoscaler
from raylm.tuning import cluster
from raylm.tuning.connection.session import connect_ray
from raylm.tuning.resources import ray_autoscaler
from raylm.tuning.resources.autoscaler import Autoscaler, NodeType, find_autoscaler, parse_config

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

GPU_TYPE = NodeType("gpu_24gb", {"CPU": 1, "GPU": 1, "gpu_gib": 22}, 1)
EIGHT = NodeType("8xh100", {"CPU": 96, "GPU": 8}, 100)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head with one CPU, and from zero a worker with a GPU, which is not there."""
    workers = {"resources": dict(GPU_TYPE.resources), "node_config": {}, "min_workers": 0, "max_workers": 1}
    with start_autoscaling_cluster({GPU_TYPE.name: workers}, head_cpus=1, max_workers=3) as address:
        yield address


def tiny(text: Path, name: str, **options: Any) -> Sweep:
    space = {"dataset": str(text), "model": "gpt2-nano", "context_length": 32, "max_train_tokens": 300}
    return Sweep(name=name, space=space, precision="float32", **options)


def test_trials_wait_for_a_gpu_that_the_autoscaler_starts(address: str, small_text: Path, tmp_path: Path) -> None:
    """The head has a CPU: a trial does not take it."""
    done = run_on_cluster(tiny(small_text, "gpu"), tmp_path, address)
    assert done.exit_code == 0, done.output
    assert "a worker with 1 CPU and 1 GPU, which the autoscaler starts: gpu_24gb (up to 1); Ctrl-C" in done.output
    (launch,) = load_results(str(done.folder)).launches
    assert launch.resources_per_trial == {"cpu": 1, "gpu": 1.0}


def test_what_no_node_type_has_is_refused_or_awaited(address: str, small_text: Path, tmp_path: Path) -> None:
    four = Resources(gpus=4)
    with pytest.raises(UserError, match=r"4 GPUs, which no .* gpu_24gb with 1 CPUs and 1 GPUs, up to 1\); request"):
        run_on_cluster(tiny(small_text, "refused", resources=four), tmp_path, address)
    sweep = tiny(small_text, "awaited", resources=four, time_budget_hours=4 / 3600)
    waited = run_on_cluster(sweep, tmp_path, address, wait_for_workers=True)
    assert "trials wait for a worker with 4 CPUs and 4 GPUs to join the cluster; Ctrl-C pauses" in waited.output
    assert waited.exit_code == 0 and "time budget" in waited.output
    assert [row.status for row in load_results(str(waited.folder)).rows] == ["interrupted"], "the next run resumes it"


def test_node_types_are_found_from_any_node_and_in_the_state_of_the_cluster(address: str) -> None:
    with connect_ray(address, verbose=False):
        (head,) = [node for node in cluster.list_alive_nodes() if "node:__internal_head__" in node["Resources"]]
        port = int(address.rpartition(":")[2])
        config, problem = cluster.run_on_nodes([head], ray_autoscaler.read_autoscaler_config, port)[head["NodeID"]]
        assert find_autoscaler() == parse_config(config) == Autoscaler([GPU_TYPE], 3) and not problem
        assert [found.status for found in _check_autoscaler()] == ["can start gpu_24gb with 1 CPUs and 1 GPUs, up to 1"]

        state = ClusterConfig()  # as Anyscale reports it
        group = state.node_group_configs.add(name=EIGHT.name, max_count=-1)
        group.resources.update({name: int(number) for name, number in EIGHT.resources.items()})
        GcsClient(address=ray.get_runtime_context().gcs_address).report_cluster_config(state.SerializeToString())
        assert find_autoscaler() == Autoscaler([EIGHT], EIGHT.max_count)
