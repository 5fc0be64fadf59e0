"""Export of a row: model, card and sweep file, all or nothing; upload with the Hub's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_for_uploads import READ_TOKEN, WRITE_TOKEN, UploadServer, serve_uploads
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import TrialConfig, UserError
from raylm.data.preparation import prepare
from raylm.report.analysis import Results
from raylm.report.export import ExportResult, export
from raylm.results import sweep_record
from raylm.results.rows import Row
from raylm.training.validation import validation_loss

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def row(trained_sweep: Results) -> Row:
    return trained_sweep.best()


def test_exported_model_has_the_loss_of_its_row(trained_sweep: Results, row: Row, tmp_path: Path) -> None:
    folder = tmp_path / "to" / "model"
    assert export(trained_sweep, row, folder) == ExportResult(license_id=None, url=None)
    assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, "README.md", "sweep.py"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    corpus = prepare(row.config.dataset_spec, None, "gpt2-nano")
    assert row.metrics is not None
    loss = validation_loss(model, corpus, row.config.context_length, micro_batch_size=4, precision="float32")
    assert loss == pytest.approx(row.metrics.val_loss, rel=1e-6)
    ids = AutoTokenizer.from_pretrained(folder)("while true")["input_ids"]
    assert 0 < len(ids) < 10


def test_folder_with_files_is_refused_and_unchanged(trained_sweep: Results, row: Row, tmp_path: Path) -> None:
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    file.write_text("mine")
    for target in (taken, file):
        with pytest.raises(UserError, match="exists and is not empty"):
            export(trained_sweep, row, target)
    assert [path.name for path in taken.iterdir()] == ["mine"] and file.read_text() == "mine"
    (taken / "mine").unlink()
    export(trained_sweep, row, taken)
    assert (taken / "model.safetensors").exists()


def test_failed_export_leaves_no_files(trained_sweep: Results, row: Row, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(pending\) has no evaluated epoch yet"):
        export(trained_sweep, trained_sweep.rows[1], tmp_path / "model")
    assert row.best_checkpoint is not None
    weights = Path(trained_sweep.storage.uri_of(row.best_checkpoint.folder), "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        export(trained_sweep, row, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# ---- upload -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[UploadServer]:
    with serve_uploads() as server:
        yield server


def run_export(
    results: Results, folder: Path, *options: str, endpoint: str, token: str | None = WRITE_TOKEN
) -> subprocess.CompletedProcess[str]:
    """Run `raylm export` with the Hub client's files in a folder next to the results."""
    home = Path(results.storage.uri).parent / "hf"
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    env.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", "from raylm.cli.app import app; app()", "export", results.storage.uri, str(folder)]
    return subprocess.run(
        [*command, *options],
        env={**env, **({"HF_TOKEN": token} if token else {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_push_uploads_the_exported_files(trained_sweep: Results, tmp_path: Path, hub: UploadServer) -> None:
    for number, repository in enumerate(("me/small", "small")):
        done = run_export(trained_sweep, tmp_path / f"{number}", "--push", repository, endpoint=hub.url)
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/me/small" in done.stdout and "--license" in done.stdout
    assert hub.visibilities == {"me/small": "private"}
    for number in range(2):
        assert hub.files["me/small"] == {path.name: path.read_bytes() for path in (tmp_path / f"{number}").iterdir()}
    assert hub.commit_messages == [f"{trained_sweep.best().config.run_name}, exported by raylm"] * 2
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or WRITE_TOKEN.encode() not in path.read_bytes(), f"{path} holds the token"


def test_public_repository_is_created_on_request(trained_sweep: Results, tmp_path: Path, hub: UploadServer) -> None:
    done = run_export(trained_sweep, tmp_path / "model", "--push", "org/small", "--public", endpoint=hub.url)
    assert (done.returncode, hub.visibilities) == (0, {"org/small": "public"})


@pytest.mark.parametrize(
    ("repository", "token", "words"),
    [
        ("me/small", None, ["hf auth login", "HF_TOKEN"]),
        ("me/small", "hf_unknown", ["hf auth login", "HF_TOKEN"]),
        ("me/small", READ_TOKEN, ["has no write access", "/settings/tokens"]),
        ("me/no name", WRITE_TOKEN, ["me/no name"]),
        ("a/b/c", WRITE_TOKEN, ["a/b/c"]),
    ],
)
def test_refused_push_leaves_no_files(
    trained_sweep: Results, tmp_path: Path, hub: UploadServer, repository: str, token: str | None, words: list[str]
) -> None:
    done = run_export(trained_sweep, tmp_path / "model", "--push", repository, endpoint=hub.url, token=token)
    assert_refused(done, f"raylm: --push {repository}: ", *words)
    assert not (tmp_path / "model").exists() and hub.files == {}
    assert token is None or token not in done.stdout + done.stderr


def test_unreachable_hub_leaves_no_files(trained_sweep: Results, tmp_path: Path) -> None:
    done = run_export(trained_sweep, tmp_path / "model", "--push", "me/small", endpoint="http://127.0.0.1:9")
    assert_refused(done, "raylm: --push me/small: ", "cannot be reached")
    assert not (tmp_path / "model").exists()


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2 and done.stderr.count("raylm: ") == 1, done.stderr
    assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr


# ---- the command --------------------------------------------------------------------------------------------------


def test_dataset_is_required_for_several_datasets(trained_sweep: Results, tmp_path: Path) -> None:
    content = json.loads((Path(trained_sweep.storage.uri) / sweep_record.RECORD_FILE).read_text())
    other = TrialConfig.from_record({"dataset": "imdb"})
    content["trials"].append({"config": other.as_dict()})
    (Path(trained_sweep.storage.uri) / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    nowhere, dataset = "http://127.0.0.1:9", trained_sweep.best().config.dataset
    assert_refused(run_export(trained_sweep, tmp_path / "model", endpoint=nowhere), "name one: ", "imdb")
    done = run_export(trained_sweep, tmp_path / "model", "--dataset", dataset, endpoint=nowhere)
    assert done.returncode == 0 and (tmp_path / "model").is_dir(), done.stderr
