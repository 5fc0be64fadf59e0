"""Loss before fine-tuning, perplexity and bits per byte, against transformers alone and counts of the file."""

from __future__ import annotations

import csv
import math
from pydoc_data.topics import topics

import pytest
import torch
from ray import tune
from reference_loss import FLOAT32_ROUNDING, mean_loss
from reference_run import train_without_ray
from transformers import AutoModelForCausalLM

from raylm import Results, Sweep, TrialConfig, load_results
from raylm.data.corpus import Windows
from raylm.data.preparation import prepare
from raylm.report import formats
from raylm.results.zero_shot import FOLDER, zero_shot_key
from raylm.training import models

VALIDATION_TEXT = topics["while"] + "\nZwölf große Boxkämpfer\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results folder of four trials that start from two losses."""
    folder = tmp_path_factory.mktemp("zero-shot")
    text = folder / "text"
    text.mkdir()
    for name, content in (("train", topics["for"]), ("validation", VALIDATION_TEXT)):
        (text / f"{name}.txt").write_text(content, encoding="utf-8")
    space = {
        "dataset": str(text),
        "max_train_tokens": 300,
        "context_length": tune.grid_search([16, 32]),
        "learning_rate": tune.grid_search([1e-3, 1e-4]),
    }
    return load_results(train_without_ray(Sweep(name="started", space=space, precision="float32"), folder))


def test_loss_before_fine_tuning_is_computed_once_per_context_length(results: Results) -> None:
    entries = results.storage.list_entries()
    assert len([name for name in entries if name.startswith(f"{FOLDER}/")]) == 2
    for row in results.rows:
        config = row.config
        corpus, source = (
            prepare(config.dataset_spec, None, config.model),
            models.resolve_model("gpt2-nano", pretrained=True),
        )
        model = models.load_model(source, vocab_size=corpus.vocab_size, dropout=None, seed=config.seed).eval()
        windows = Windows(corpus.validation.tokens, config.context_length, corpus.start_token_id)
        loss = row.zero_shot_loss
        assert loss == pytest.approx(mean_loss(model, windows), rel=FLOAT32_ROUNDING)
        assert row.metrics is not None and loss is not None and loss > row.metrics.val_loss


def test_perplexities_and_bits_per_byte_are_those_of_transformers_and_the_file(results: Results) -> None:
    records = list(csv.DictReader(formats.format_csv(results).splitlines()))
    for row, record in zip(results.rows, records, strict=True):
        assert row.best_checkpoint is not None
        folder = results.storage.uri_of(row.best_checkpoint.folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        corpus = prepare(row.config.dataset_spec, None, row.config.model)
        windows = Windows(corpus.validation.tokens, row.config.context_length, corpus.start_token_id)
        mean = mean_loss(model, windows)
        total = mean * len(windows.tokens)
        assert float(record["perplexity"]) == pytest.approx(math.exp(mean), rel=1e-5)
        expected = math.exp(total / len(VALIDATION_TEXT.split()))
        assert float(record["word_perplexity"]) == pytest.approx(expected, rel=1e-4)
        expected = total / math.log(2) / len(VALIDATION_TEXT.encode())
        assert float(record["bits_per_byte"]) == pytest.approx(expected, rel=1e-5)
        assert float(record["zero_shot_loss"]) == row.zero_shot_loss
        assert record["zero_shot_loss_precision"] == row.zero_shot_precision == "float32"


def test_trials_share_a_start_unless_model_text_or_window_differ() -> None:
    first = TrialConfig(model="gpt2")
    same = [TrialConfig(model="gpt2", seed=1), TrialConfig(model="gpt2", batch_size=2, dropout=0.0, epochs=3)]
    other = [
        TrialConfig(model="gpt2", context_length=64),
        TrialConfig(model="gpt2", pretrained=False),
        TrialConfig(model="gpt2", dataset="imdb"),
        TrialConfig(model="gpt2-nano"),
        TrialConfig(model="gpt2-nano", seed=1),  # random weights
    ]
    assert {zero_shot_key(trial) for trial in same} == {zero_shot_key(first)}
    assert len({zero_shot_key(trial) for trial in [first, *other]}) == len(other) + 1
