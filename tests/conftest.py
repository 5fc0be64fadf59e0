"""Fixtures of all tests: small datasets, a stand-in for the hub, a shared Ray, and sweeps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import pytest
from distribution import (  # noqa: F401  (hooks)
    pytest_collection_modifyitems,
    pytest_configure_node,
    pytest_unconfigure,
    pytest_xdist_make_scheduler,
)

from raylm import Sweep, load_results
from raylm.config.dataset import DatasetSpec
from raylm.report.analysis import Results

if TYPE_CHECKING:
    from ray_cluster import FinishedRun

    from raylm.data.corpus import Corpus

HUB_DIR = Path(__file__).resolve().parents[2] / "shared" / "hub"

RunSweep = Callable[..., subprocess.CompletedProcess[str]]
RunHere = Callable[..., "FinishedRun"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests share the machine; read when torch is imported


@pytest.fixture(scope="session", autouse=True)
def _isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache, the hub and all trackers out of the tests."""
    before = os.environ.copy()
    os.environ.update(RAYLM_CACHE=str(tmp_path_factory.mktemp("cache")), HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def small_text(_isolated_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of 3,000 tokens: a folder with train.txt and validation.txt, from Python's documentation."""
    folder = tmp_path_factory.mktemp("small-text")
    (folder / "train.txt").write_text(
        topics["operator-summary"] + topics["integers"] + topics["lambda"] + topics["for"]
    )
    (folder / "validation.txt").write_text(topics["while"] + topics["break"])
    os.environ["RAYLM_TESTS_TEXT"] = str(folder)  # for the sweeps of tests/programs
    return folder


@pytest.fixture(scope="session")
def corpus(small_text: Path) -> Corpus:
    """`small_text`, tokenized for `gpt2-nano`. Not to be changed."""
    from raylm.data import preparation

    return preparation.prepare(DatasetSpec(str(small_text)), None, "gpt2-nano")


@pytest.fixture(scope="session")
def _trained_folder(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from reference_run import train_without_ray

    fields = {"dataset": str(small_text), "context_length": 32, "learning_rate": 1e-3, "max_train_tokens": 1000}
    sweep = Sweep(name="s", space=fields, seeds=(0, 1), precision="float32")
    return train_without_ray(sweep, tmp_path_factory.mktemp("trained"), sweep.trials()[:1])


@pytest.fixture
def trained_sweep(_trained_folder: Path, tmp_path: Path) -> Results:
    """Results folder with a finished and a pending trial, made without Ray; a copy for each test."""
    return load_results(shutil.copytree(_trained_folder, tmp_path / "s"))


@contextlib.contextmanager
def serve_hub(*options: str) -> Iterator[str]:
    """Serve a stand-in for the Hugging Face Hub until the context exits; yield its URL."""
    if not (HUB_DIR / "serve.py").exists():
        pytest.skip("the stand-in for the Hugging Face Hub (../shared/hub) is not here")
    command = [sys.executable, str(HUB_DIR / "serve.py"), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
        finally:
            server.terminate()


@pytest.fixture
def ray_tmpdir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of Ray's notes about a cluster, so that other commands do not find it."""
    place = tempfile.mkdtemp(prefix="raylm", dir="/tmp")  # short enough for Ray's sockets
    monkeypatch.setenv("RAY_TMPDIR", place)
    yield Path(place)
    shutil.rmtree(place, ignore_errors=True)


SMALL_HUB_DATASET, SMALL_HUB_MODEL = "raylm-test/topics", "raylm-test/gpt2-tiny"
"""Contents of `write_small_hub`."""


def write_small_hub(folder: Path, train: Sequence[str], validation: Sequence[str]) -> Path:
    """Write a folder for `serve_hub`: a dataset of these rows, and a model of random weights with GPT-2's tokenizer."""
    if not HUB_DIR.exists():
        pytest.skip("the stand-in for the Hugging Face Hub (../shared/hub) is not here")
    model, data = f"models/{SMALL_HUB_MODEL}", folder / "datasets" / SMALL_HUB_DATASET / "data"
    shutil.copytree(HUB_DIR / model, folder / model)
    shutil.copytree(HUB_DIR / "common", folder / "common")
    (folder / "aliases.json").write_text(json.dumps({"shared": {model: "common/gpt2-tokenizer"}}))
    data.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation)):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), data / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def hub_url() -> Iterator[str]:
    """URL of a stand-in for the hub that all tests share."""
    with serve_hub() as address:
        yield address


@pytest.fixture
def hub_env(hub_url: str, tmp_path: Path) -> dict[str, str]:
    """Environment of a process that uses the stand-in for the hub, with empty caches."""
    caches = {"HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm")}
    return {**os.environ, "HF_ENDPOINT": hub_url, "HF_HUB_OFFLINE": "0", **caches}


@pytest.fixture(scope="session")
def ray_address(_isolated_environment: None) -> Iterator[str]:
    """Address of a Ray that tests share: one node with two CPUs and two GPUs, which do not exist."""
    from ray_cluster import GPU_NAME, start_cluster

    with start_cluster(num_cpus=2, num_gpus=2, resources={f"accelerator_type:{GPU_NAME}": 1}) as cluster:
        yield cluster.address


@pytest.fixture
def run_here(ray_address: str, tmp_path: Path) -> RunHere:
    """Function that runs a sweep from this process on the shared Ray, with its results in `tmp_path / "runs"`."""
    from ray_cluster import run_on_cluster

    def run(sweep: Sweep, **options: Any) -> FinishedRun:
        return run_on_cluster(sweep, tmp_path / "runs", ray_address, **options)

    return run


@pytest.fixture
def run_sweep(tmp_path: Path) -> RunSweep:
    """Function that runs `python -m raylm.sweep FILE ...`, with its results in `tmp_path / "runs"`."""

    def run_command(file: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            build_sweep_command(file, tmp_path / "runs", *arguments),
            capture_output=True,
            text=True,
            timeout=570,
            check=False,
            env={**(env or os.environ), "COLUMNS": "200"},
        )

    return run_command


def build_sweep_command(file: Path, storage: Path, *arguments: str) -> list[str]:
    """Return the command line of a sweep."""
    return [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(storage), *arguments]
