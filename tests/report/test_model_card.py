"""Model card of an exported row: losses, origins, license, and the sweep file that reproduces it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from raylm import TrialConfig
from raylm.config.sweep_file import load_sweep
from raylm.report import model_card
from raylm.report.analysis import Results
from raylm.report.export import export
from raylm.results.rows import Row, SweepRows
from raylm.results.sweep_record import DataRecord, LaunchRecord, ModelRecord, SweepRecord


@pytest.fixture
def row(trained_sweep: Results) -> Row:
    return trained_sweep.best()


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
        (Path(row.config.dataset).name, "nats per byte of the original text", trained_sweep.nats_per_byte(row)),
    ]
    assert "Nats per byte of the original text: " in card.text and "Evaluated in float32." in card.text
    assert f"| {losses.train_loss:.2f} | {losses.val_loss:.2f} | {losses.adj_val_loss:.2f} |" in card.text
    assert "gpt2-nano trained from random weights on" in card.text
    assert "License of these weights: unknown. Set one with `raylm export --license`." in card.text


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
    assert f"`{data_folder.name}` is local and not included" in (folder / "README.md").read_text()
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
