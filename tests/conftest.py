"""What tests share: real text in small, the hub's stand-in where it is at hand, whole sweeps as a user starts them."""

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
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet
import pytest

from raylm import load_results
from raylm.report.analysis import SweepResults

if TYPE_CHECKING:
    from raylm.data.corpus import Corpus

HUB_DIR = Path(__file__).resolve().parents[2] / "shared" / "hub"

RunSweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a user has prepared is read or overwritten, nothing is asked of a hub, and no tracker is told."""
    before = os.environ.copy()
    os.environ.update(RAYLM_CACHE=str(tmp_path_factory.mktemp("cache")), HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of some 3,000 tokens: a folder with train.txt and validation.txt, from Python's documentation."""
    folder = tmp_path_factory.mktemp("small-text")
    (folder / "train.txt").write_text(
        topics["operator-summary"] + topics["integers"] + topics["lambda"] + topics["for"]
    )
    (folder / "validation.txt").write_text(topics["while"] + topics["break"])
    return folder


@pytest.fixture(scope="session")
def corpus(small_text: Path) -> Corpus:
    """The same in tokens of `gpt2-nano`. Not to be changed."""
    from raylm.data import preparation

    return preparation.prepare(str(small_text), None, "gpt2-nano")


@pytest.fixture(scope="session")
def _trained_folder(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from raylm import Sweep
    from raylm.data import preparation
    from raylm.results import sweep_record
    from raylm.results.storage import Folder
    from raylm.training import models
    from raylm.training.train import finetune

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "s"
    fields = {"dataset": str(small_text), "context_length": 32, "learning_rate": 1e-3, "max_train_tokens": 1000}
    sweep = Sweep(name="s", space=fields, seeds=(0, 1))
    config = sweep.trials()[0]
    corpus = preparation.prepare(str(small_text), None, "gpt2-nano")
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    checkpoint = folder / "launch-001" / config.run_name / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    last.save(checkpoint)
    data = sweep_record.DataRecord(str(small_text), "gpt2-nano", fingerprint=corpus.fingerprint)
    launch = sweep_record.LaunchRecord(1, precision="float32", data=[data])
    sweep_record.write(Folder(folder), sweep_record.SweepRecord("s", sweep.trials(), launches=[launch]))
    return folder


@pytest.fixture
def trained_sweep(_trained_folder: Path, tmp_path: Path) -> SweepResults:
    """A results folder with a finished trial and one that was never begun, made without Ray; each test has its own."""
    return load_results(shutil.copytree(_trained_folder, tmp_path / "s"))


@contextlib.contextmanager
def serve_hub(*options: str) -> Iterator[str]:
    """The address of a stand-in for the Hugging Face Hub, while it runs."""
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
    """Where Ray keeps what it notes of a cluster: no other command is to take this one's for its own."""
    place = tempfile.mkdtemp(prefix="raylm", dir="/tmp")  # short enough for Ray's sockets
    monkeypatch.setenv("RAY_TMPDIR", place)
    yield Path(place)
    shutil.rmtree(place, ignore_errors=True)


SMALL_HUB_DATASET, SMALL_HUB_MODEL = "raylm-test/topics", "raylm-test/gpt2-tiny"
"""What `small_hub` holds."""


def write_small_hub(folder: Path, train: Sequence[str], validation: Sequence[str]) -> Path:
    """A folder for a stand-in to serve: a dataset of these rows, a model of random weights with GPT-2's tokenizer."""
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
    """The address of a stand-in that all tests share."""
    with serve_hub() as address:
        yield address


@pytest.fixture
def hub_env(hub_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that uses the stand-in, with empty caches."""
    caches = {"HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm")}
    return {**os.environ, "HF_ENDPOINT": hub_url, "HF_HUB_OFFLINE": "0", **caches}


@pytest.fixture
def run_sweep(tmp_path: Path) -> RunSweep:
    """`python -m raylm.sweep FILE ...`, its results in `tmp_path / "runs"`."""

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
    """The command line of a sweep."""
    return [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(storage), *arguments]
