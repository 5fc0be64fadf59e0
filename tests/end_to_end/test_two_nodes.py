"""A cluster of two nodes: what `raylm doctor` finds there, and local models that only the command sees."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import build_sweep_command
from oracle import hash_best_weights, read_stable_table
from ray_cluster import PROGRAMS, start_cluster
from reference_run import train_without_ray
from s3 import set_environment

from raylm import TrialConfig
from raylm.config.dataset import DatasetSpec
from raylm.config.sweep_file import load_sweep
from raylm.data import preparation
from raylm.training import models
from raylm.training.train import finetune

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class TwoNodes:
    """A head without a CPU and a worker with two CPUs and a GPU, which is not there."""

    address: str
    cache: Path
    """Cache of both nodes; the command has another."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    cache = tmp_path_factory.mktemp("nodes") / "cache"
    with set_environment({"RAYLM_CACHE": str(cache)}), start_cluster(num_cpus=0) as cluster:
        cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        yield TwoNodes(cluster.address, cache)


def test_doctor_looks_at_each_node(nodes: TwoNodes, tmp_path: Path) -> None:
    raylm = str(Path(sys.executable).with_name("raylm"))
    command = [raylm, "doctor", "--address", nodes.address, "--storage", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "1 according to Ray, 0 to torch" in done.stdout and "is a build for CPUs" in done.stdout
    assert done.stdout.count("read, written and removed") == 2
    assert "2 nodes at" in done.stdout


@pytest.fixture
def model(small_text: Path, tmp_path: Path) -> Path:
    """A folder with a trained model."""
    config = TrialConfig(dataset=str(small_text), context_length=32, max_train_tokens=300)
    corpus = preparation.prepare(DatasetSpec(str(small_text)), None, "gpt2-nano")
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    (tmp_path / "model").mkdir()
    last.save(tmp_path / "model")
    return tmp_path / "model"


def test_local_model_reaches_a_node_that_does_not_have_it(
    nodes: TwoNodes, model: Path, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the command sees the folder, in a mount namespace of its own."""
    alone = ["unshare", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    mounted, file = tmp_path / "mounted", PROGRAMS / "own_model.py"
    mounted.mkdir()
    monkeypatch.setenv("RAYLM_TESTS_MODEL", str(mounted))
    mount = ["sh", "-c", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh", str(model), str(mounted)]
    command = build_sweep_command(file, tmp_path / "runs", "--address", nodes.address)
    done = subprocess.run([*alone, *mount, *command], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (unpacked,) = [path for path in (nodes.cache / "models").iterdir() if path.is_dir()]
    assert (unpacked / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()

    shutil.copytree(model, mounted, dirs_exist_ok=True)
    reference = train_without_ray(load_sweep(file), tmp_path / "reference")
    assert read_stable_table(tmp_path / "runs" / "own") == read_stable_table(reference)
    assert hash_best_weights(tmp_path / "runs" / "own") == hash_best_weights(reference)
