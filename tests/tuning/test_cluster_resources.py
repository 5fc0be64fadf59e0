"""What a cluster has for trials, and what its autoscaler may start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

HEAD = """
from ray.cluster_utils import Cluster
import ray
from raylm.tuning import cluster
started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(started.address, logging_level="ERROR")
gpu, cpu = {"cpu": 2, "gpu": 1.0}, {"cpu": 2, "gpu": 0.0}
print(*[cluster.count_concurrent_trials(*each) for each in ((gpu, None), (cpu, None), (cpu, 3))])
print(cluster.max_gpu_memory_gib())
ray.shutdown()
started.shutdown()
"""


def test_an_autoscalers_own_limit_counts(ray_tmpdir: Path, tmp_path: Path) -> None:
    """Three workers at most, of two kinds of which there may be eight and two: the most that three can run."""
    small, large = {"CPU": 4, "GPU": 1, "gpu_gib": 22}, {"CPU": 16, "GPU": 2, "gpu_gib": 158}
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "small": {"max_workers": 8, "resources": small},
        "large": {"max_workers": 2, "resources": large},
    }
    content = {"max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(content))
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", HEAD]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert done.stdout.splitlines()[-2:] == ["5 18 3", "79.0"]
