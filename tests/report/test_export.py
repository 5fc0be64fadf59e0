"""Export of a row: model, card and sweep file, all or nothing; upload with the Hub's own client."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_for_uploads import READ_TOKEN, WRITE_TOKEN, UploadServer, serve_uploads
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import TrialConfig, UserError
from raylm.config.sweep_file import load_sweep
from raylm.data.preparation import prepare
from raylm.report import model_card
from raylm.report.analysis import Results
from raylm.report.export import ExportResult, export
from raylm.results import sweep_record
from raylm.results.rows import Row, SweepRows
from raylm.results.sweep_record import DataRecord, LaunchRecord, ModelRecord, SweepRecord
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
    corpus = prepare(row.config.dataset, None, "gpt2-nano")
    assert row.metrics is not None
    loss = validation_loss(model, corpus, row.config.context_length, micro_batch_size=4, precision="float32")
    assert loss == pytest.approx(row.metrics.val_loss, rel=1e-6)
    ids = AutoTokenizer.from_pretrained(folder)("while true")["input_ids"]
    assert 0 < len(ids) < 10


def test_card_has_the_losses_with_their_dataset(trained_sweep: Results, row: Row, tmp_path: Path) -> None:
    export(trained_sweep, row, tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("unknown", None, None)
    losses = row.metrics
    assert losses is not None and card.data.eval_results is not None
    assert [(result.dataset_name, result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        (Path(row.config.dataset).name, "val loss (nats per token)", losses.val_loss),
        (Path(row.config.dataset).name, "adj val loss (nats per word)", losses.adj_val_loss),
        (Path(row.config.dataset).name, "perplexity per token", math.exp(losses.val_loss)),
    ]
    assert f"| {losses.train_loss:.2f} | {losses.val_loss:.2f} | {losses.adj_val_loss:.2f} |" in card.text
    assert "gpt2-nano trained from random weights on" in card.text


def test_overflowing_perplexity_is_left_out_of_the_metadata(trained_sweep: Results, row: Row) -> None:
    assert row.latest_checkpoint is not None and row.metrics is not None
    metrics = replace(row.metrics, val_loss=800.0)
    latest = replace(row.latest_checkpoint, progress=replace(row.latest_checkpoint.progress, evaluations=[metrics]))
    provenance = model_card.load_provenance(trained_sweep, row)
    text = model_card.render_card(trained_sweep, replace(row, latest_checkpoint=latest), provenance, None)
    assert "Perplexity per token: inf." in text and "value: 800.0" in text and "perplexity per token" not in text


def test_card_hides_local_paths_and_reproduces_the_row(
    trained_sweep: Results, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    export(trained_sweep, row, folder)
    data_folder = Path(row.config.dataset)
    for file in folder.iterdir():
        assert str(data_folder.parent).encode() not in file.read_bytes(), file.name
    text = (folder / "sweep.py").read_text()
    assert f"```python\n{text}```" in (folder / "README.md").read_text()
    monkeypatch.chdir(data_folder.parent)
    sweep = load_sweep(folder / "sweep.py")
    assert sweep.trials() == [replace(row.config, dataset=data_folder.name)]
    assert (sweep.name, sweep.precision) == ("s", "float32")


def with_config(results: Results, config: TrialConfig, revision: str) -> tuple[SweepRows, Row]:
    """Return the trained row as if it were of another config, of repositories at a commit."""
    launch = LaunchRecord(
        1,
        versions={"torch": "2.13.0"},
        precision=results.launches[0].precision,
        models=[ModelRecord(config.model, config.pretrained, revision)],
        data=[DataRecord(config.dataset, config.model, revision)],
    )
    row = replace(results.best(), config=config)
    return SweepRows(results.storage, [row], SweepRecord("s", [config], launches=[launch])), row


@pytest.mark.parametrize(
    ("fields", "base", "dataset", "license_id"),
    [
        ({"dataset": "imdb", "model": "gpt2"}, "openai-community/gpt2", "stanfordnlp/imdb", "mit"),
        ({"dataset": "imdb", "model": "gpt2", "pretrained": False}, None, "stanfordnlp/imdb", "unknown"),
        ({"dataset": "owner/text:part", "model": "owner/model"}, "owner/model", "owner/text", "unknown"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_hub_repositories_are_named_in_the_card(
    trained_sweep: Results,
    tmp_path: Path,
    fields: Mapping[str, object],
    base: str | None,
    dataset: str,
    license_id: str,
) -> None:
    config = TrialConfig.from_record({"context_length": 256, **fields})
    results, row = with_config(trained_sweep, config, "a" * 40)
    export(results, row, tmp_path / "model")  # offline, so the license of owner/model is unknown
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert (card.data.base_model, card.data.datasets, card.data.license) == (base, [dataset], license_id)
    assert card.data.eval_results is not None
    assert {result.dataset_revision for result in card.data.eval_results} == {"a" * 40}
    assert f"(https://huggingface.co/datasets/{dataset})" in card.text and "torch 2.13.0" in card.text
    assert model_card.load_provenance(results, row).dataset.config_name in ("plain_text", "part")


def test_license_option_takes_precedence(trained_sweep: Results, tmp_path: Path) -> None:
    results, row = with_config(trained_sweep, TrialConfig.from_record({"dataset": "imdb", "model": "gpt2"}), "a" * 40)
    assert export(results, row, tmp_path / "model", license_id="cc-by-4.0").license_id == "cc-by-4.0"
    assert ModelCard.load(tmp_path / "model" / "README.md").data.license == "cc-by-4.0"


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
    with pytest.raises(UserError, match=r"\(missing\) has no evaluated epoch yet"):
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
