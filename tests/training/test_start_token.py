"""Windows of models whose tokenizer has a start token of its own, against transformers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_tokenizers import byte_level, save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import TrialConfig
from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
from raylm.training import models
from raylm.training.train import finetune
from raylm.training.validation import validation_loss

LENGTH = 32


def independent_loss(folder: Path, text: str, start_token: str) -> float:
    """Return the mean loss of a text in windows that begin with a token, computed by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    start = tokenizer.convert_tokens_to_ids(start_token)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[begin : begin + LENGTH - 1] for begin in range(0, len(ids), LENGTH - 1)]
    total = 0.0
    with torch.no_grad():
        for window in windows:
            inputs = torch.tensor([[start, *window]])
            total += float(model(inputs, labels=inputs).loss) * len(window)
    return total / len(ids)


@pytest.mark.parametrize(("bos", "first"), [("<s>", "<s>"), (None, "</s>")], ids=["own", "none"])
def test_losses_are_those_of_windows_with_the_start_token(
    tmp_path: Path, small_text: Path, bos: str | None, first: str
) -> None:
    save_llama(tmp_path, byte_level(bos=bos))
    config = TrialConfig(
        dataset=str(small_text), model=str(tmp_path), context_length=LENGTH, learning_rate=1e-12, max_train_tokens=500
    )
    corpus = prepare(DatasetSpec(str(small_text)), tmp_path, "x")
    source = models.resolve_model(config.model, pretrained=True)
    (evaluation,) = finetune(config, corpus, source)
    expected = independent_loss(tmp_path, (small_text / "validation.txt").read_text(), first)
    assert evaluation.eval_metrics.val_loss == pytest.approx(expected, abs=1e-5)
    other = "</s>" if first == "<s>" else "<s>"
    assert abs(independent_loss(tmp_path, (small_text / "validation.txt").read_text(), other) - expected) > 1e-4
    model = models.load_model(source, vocab_size=corpus.vocab_size, dropout=None, seed=0)
    assert validation_loss(model, corpus, LENGTH, 4, "float32") == pytest.approx(expected, abs=1e-5)
