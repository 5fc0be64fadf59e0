"""A model in a local folder reaches machines that do not have it, once each."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import build_sweep_command
from oracle import hash_best_weights, read_stable_table
from ray.cluster_utils import Cluster

from raylm import TrialConfig
from raylm.data import cache, preparation
from raylm.training import models
from raylm.training.train import finetune
from raylm.tuning import prepare


@pytest.fixture(scope="module")
def folder(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that somebody has trained."""
    config = TrialConfig(dataset=str(small_text), context_length=32, max_train_tokens=300)
    corpus = preparation.prepare(str(small_text), None, "gpt2-nano")
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    made = tmp_path_factory.mktemp("own") / "model"
    made.mkdir()
    last.save(made)
    return made


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_unpacked_is_what_was_packed(
    folder: Path, weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    source = models.resolve_model(str(folder), pretrained=weights)
    packed = prepare.ship_model(source)
    assert packed is not None and ("model.safetensors" in packed) == weights
    with ThreadPoolExecutor(4) as several:  # trials that begin together on one node
        there = list(several.map(lambda _: prepare.receive_model(source, packed), range(4)))
    assert set(there) == {there[0]}
    files = there[0].fetch_files()
    assert files is not None and files.parent == cache.root_dir() / "models"
    assert models.resolve_model(str(files), pretrained=weights).revision == source.revision
    assert sorted(path.name for path in files.parent.iterdir()) == sorted([files.name, f"{files.name}.lock"])


def test_what_a_machine_fetches_itself_is_not_packed() -> None:
    assert prepare.ship_model(models.resolve_model("gpt2-nano", pretrained=True)) is None
    assert prepare.ship_model(models.ModelSource("gpt2", "/anywhere", True, "openai-community/gpt2", "abc")) is None


def test_other_weights_in_a_folder_are_another_revision(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    before = models.resolve_model(str(tmp_path / "model"), pretrained=True)
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    after = models.resolve_model(str(tmp_path / "model"), pretrained=True)
    assert before.revision != after.revision
    random = [models.resolve_model(str(one), pretrained=False).revision for one in (folder, tmp_path / "model")]
    assert random[0] == random[1], "weights that are not loaded change nothing"


SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="own", space={{
    "dataset": {text!r}, "model": {model!r}, "context_length": 32, "max_train_tokens": 600, "dropout": 0.0,
    "learning_rate": tune.grid_search([1e-3, 2e-3]),
}}, resources=Resources(cpus=1))
"""


@pytest.mark.slow
def test_a_sweep_on_nodes_without_the_folder(
    folder: Path, small_text: Path, ray_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the command sees it, in a mount namespace of its own."""
    alone = ["unshare", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    model, file = tmp_path / "mounted", tmp_path / "own.py"
    model.mkdir()
    file.write_text(SWEEP.format(text=str(small_text), model=str(model)))
    mounted = ["sh", "-c", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh", str(folder), str(model)]
    local = build_sweep_command(file, tmp_path / "local", "--address", "local")
    subprocess.run([*alone, *mounted, *local], check=True)

    here = os.environ["RAYLM_CACHE"]
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "cache"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        there = build_sweep_command(file, tmp_path / "runs", "--address", cluster.address)
        done = subprocess.run(
            [*alone, *mounted, *there],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "RAYLM_CACHE": here},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.shutdown()
    (unpacked,) = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert (unpacked / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert read_stable_table(tmp_path / "runs" / "own") == read_stable_table(tmp_path / "local" / "own")
    assert hash_best_weights(tmp_path / "runs" / "own") == hash_best_weights(tmp_path / "local" / "own")
