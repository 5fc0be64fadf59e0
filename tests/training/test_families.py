"""Families of models, tiny and random: trained, resumed, evaluated, sampled and exported as by transformers alone.

`python tests/programs/family_table.py` prints the differences of the losses.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from reference_loss import mean_loss
from tiny_families import FAMILIES, build_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import Sweep, TrialConfig, load_results
from raylm.data.corpus import Corpus, Windows
from raylm.data.preparation import prepare
from raylm.report.export import export
from raylm.results import sweep_record
from raylm.results.storage import Folder
from raylm.training import model_check, models
from raylm.training.evaluate import evaluate_lengths
from raylm.training.generate import generate_samples
from raylm.training.models import ModelSource
from raylm.training.train import Evaluation, finetune
from raylm.tuning.prepare import PreparedInputs

LENGTH = 24
DAILY = ("GPT2", "Llama", "Gemma3Text", "GPTNeo", "Mamba", "Mixtral")
"""Families that stand for the kinds: GPT-2's own paths; a start token; windows of attention; local attention; a state
instead of attention; experts, whose weights are converted when they are saved."""


def in_default_tier(families: dict[str, object]) -> list[object]:
    """Return parameters for all families, those that are not of the default tier with a marker."""
    return [pytest.param(name, marks=[] if name in DAILY else [pytest.mark.nightly]) for name in families]


@pytest.fixture(scope="module", autouse=True)
def _silent_transformers() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


@pytest.fixture
def trial(tmp_path: Path, small_text: Path, family: str) -> tuple[TrialConfig, Corpus, ModelSource]:
    """Trial of two evaluations on a family's model, with its corpus and source."""
    folder = tmp_path / "model"
    build_model(family).save_pretrained(folder)
    byte_level(bos=None if family in ("GPT2", "OPT") else "<s>").save_pretrained(folder)
    config = TrialConfig(
        dataset=str(small_text),
        model=str(folder),
        context_length=LENGTH,
        batch_size=4,
        learning_rate=1e-3,
        max_train_tokens=24 * (LENGTH - 1),
        evals_per_epoch=2,
    )
    source = models.resolve_model(config.model, pretrained=True)
    corpus = prepare(config.dataset_spec, source.fetch_files(), config.model)
    model_check.check_model(source, vocab_size=corpus.vocab_size, dropout=None)
    validation = replace(corpus.validation, tokens=corpus.validation.tokens[:300])
    return config, replace(corpus, validation=validation), source


def independent_loss(folder: Path, corpus: Corpus) -> float:
    """Return the val loss of a checkpoint, computed by transformers alone, a window at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return mean_loss(model, Windows(corpus.validation.tokens, LENGTH, corpus.start_token_id))


def save(evaluation: Evaluation, folder: Path) -> Path:
    folder.mkdir(parents=True)
    evaluation.save(folder)
    return folder


@pytest.mark.parametrize("family", in_default_tier(dict(FAMILIES)))
def test_family_is_trained_resumed_evaluated_and_exported(
    trial: tuple[TrialConfig, Corpus, ModelSource], tmp_path: Path, family: str
) -> None:
    config, corpus, source = trial
    launch = tmp_path / "runs" / "families" / "launch-001" / config.run_name

    evaluations = []
    for number, evaluation in enumerate(finetune(config, corpus, source)):
        evaluations.append(evaluation.eval_metrics)
        save(evaluation, launch / f"checkpoint_{number:06d}")
    first, last = evaluations
    for number, metrics in enumerate(evaluations):
        expected = independent_loss(launch / f"checkpoint_{number:06d}", corpus)
        assert metrics.val_loss == pytest.approx(expected, abs=1e-5)
        assert math.exp(metrics.val_loss) == pytest.approx(math.exp(expected), rel=1e-5)
    before = independent_loss(Path(config.model), corpus)
    assert last.val_loss < before, "the model learns"

    interrupted = finetune(config, corpus, source)
    assert next(interrupted).eval_metrics == first
    (resumed,) = finetune(config, corpus, source, resume_from=launch / "checkpoint_000000")
    assert resumed.eval_metrics == last

    results = load_results(record_sweep(config, corpus, tmp_path / "runs"))
    (row,) = results.rows
    (at_12,) = evaluate_lengths(results, [12])
    model = AutoModelForCausalLM.from_pretrained(launch / "checkpoint_000001", dtype=torch.float32).eval()
    whole = prepare(config.dataset_spec, Path(config.model), config.model).validation.tokens
    windows = Windows(whole, 12, corpus.start_token_id)
    assert at_12.val_loss == pytest.approx(mean_loss(model, windows), abs=1e-5)
    (sample,) = generate_samples(results, [row], "The ", max_new_tokens=4, temperature=0)
    assert sample.full_text.startswith("The ")

    export(results, row, tmp_path / "exported")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    assert mean_loss(reopened, Windows(corpus.validation.tokens, LENGTH, corpus.start_token_id)) == pytest.approx(
        last.val_loss, abs=1e-5
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "exported")) == corpus.vocab_size
    shutil.rmtree(tmp_path / "exported")


def record_sweep(config: TrialConfig, corpus: Corpus, storage: Path) -> str:
    """Write the record of a sweep with this trial; return its results folder."""
    sweep = Sweep(name="families", space=dict(config.as_record()))
    data = PreparedInputs({config.corpus_key: corpus}, {}, {}).data_records()
    launch = sweep_record.LaunchRecord(1, precision="float32", data=data)
    folder = Folder(storage / sweep.name)
    sweep_record.write(folder, sweep_record.SweepRecord(sweep.name, [config], launches=[launch]))
    return folder.uri
