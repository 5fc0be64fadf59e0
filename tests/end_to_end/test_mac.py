"""A sweep on a cluster whose node Ray gives a GPU and torch Apple's one, by the stand-in that the host computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_mps import stand_in
from ray_cluster import start_cluster
from s3 import set_environment

from raylm import load_results

pytestmark = [
    pytest.mark.ray,
    pytest.mark.nightly,
    pytest.mark.skipif(not stand_in.can_install(), reason="needs Linux, g++ and a build of torch for CPUs"),
]


def run(*arguments: str) -> str:
    """Run a command of raylm and return its output."""
    raylm = str(Path(sys.executable).with_name("raylm"))
    done = subprocess.run([raylm, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sweep_trains_on_apple_gpu_and_its_best_checkpoint_generates_there(small_text: Path, tmp_path: Path) -> None:
    file, runs = tmp_path / "mac.py", tmp_path / "runs"
    space = {"dataset": str(small_text), "model": "gpt2-nano", "context_length": 32, "max_train_tokens": 300}
    file.write_text(f"from raylm import Sweep\nsweep = Sweep(name='mac', space={space!r})\n")
    stand_in.build()
    paths = os.pathsep.join(filter(None, [str(stand_in.SITE), os.environ.get("PYTHONPATH", "")]))
    with set_environment({"PYTHONPATH": paths}):
        with start_cluster(num_cpus=2, num_gpus=1) as cluster:
            run("run", str(file), "--storage", str(runs), "--address", cluster.address)
            assert f"{stand_in.GPU_NAME} (8 GiB); trials train on mps in float32" in run(
                "doctor", "--address", cluster.address
            )
        assert run("generate", str(runs / "mac"), "--prompt", "The")
    results = load_results(str(runs / "mac"))
    (row,), (launch,) = results.rows, results.launches
    assert row.status == "done"
    assert (launch.precision, launch.resources_per_trial["gpu"]) == ("float32", 1.0)
    (log,) = runs.rglob("log.txt")
    assert f"trains on mps ({stand_in.GPU_NAME}) in float32" in log.read_text()
