"""Resources that a cluster has for trials, and that its autoscaler may start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml

from raylm.tuning import cluster


def test_autoscalers_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers at most, of two types of which there may be eight and two: the most that three can run."""
    small, large = {"CPU": 4, "GPU": 1, "gpu_gib": 22}, {"CPU": 16, "GPU": 2, "gpu_gib": 158}
    node_types = {
        "head": {"resources": {"CPU": 0}},
        "small": {"max_workers": 8, "resources": small},
        "large": {"max_workers": 2, "resources": large},
    }
    content = {"max_workers": 3, "head_node_type": "head", "available_node_types": node_types}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "find_local_cluster", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(cluster, "list_alive_nodes", lambda: [{"Resources": {"node:__internal_head__": 1.0}}])
    gpu, cpu = {"cpu": 2, "gpu": 1.0}, {"cpu": 2, "gpu": 0.0}
    limits = ((gpu, None), (cpu, None), (cpu, 3))
    assert [cluster.count_concurrent_trials(resources, limit) for resources, limit in limits] == [5, 18, 3]
    assert cluster.max_gpu_memory_gib() == 79.0
