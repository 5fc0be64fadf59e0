"""One trial of a random input: by raylm in this process, and by transformers and torch alone."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, settings
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast
from transformers.optimization import Adafactor

from raylm.config.trial import TrialConfig
from raylm.errors import SweepError, UserError
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder
from raylm.training.train import finetune
from raylm.tuning.prepare import prepare_inputs

FACTOR = int(os.environ.get("RAYLM_FUZZ", "1"))
"""Examples of each test, in units of those of the default tier."""
LOSS_TOLERANCE = 1e-5
"""Relative tolerance of losses: those of the first step, and those after it, with sums in another order."""
LEARNING_RATE = 1e-4
"""Rate at which the step of a weight whose gradient is rounding alone, as of a key's bias, changes losses by less."""
NANO_VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"


def fuzz(max_examples: int) -> settings:
    """Return the settings of a test that has this number of examples in the default tier, the same in each run."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=max_examples * FACTOR,
        suppress_health_check=[HealthCheck.too_slow],
    )


@dataclass(frozen=True)
class Texts:
    """Text of a dataset, as it should be trained on."""

    train: Sequence[str]
    validation: Sequence[str]
    is_documents: bool
    """False: the texts of a split are one stream."""

    @property
    def lacks_words(self) -> bool:
        """True if one of the splits has no words."""
        return any(not "".join(texts).split() for texts in (self.train, self.validation))


@dataclass(frozen=True)
class Losses:
    """Losses of a trial with one optimizer step, and the tokens that they are of."""

    train_tokens: list[int]
    validation_tokens: list[int]
    train_loss: float
    val_loss: float
    """After the step."""


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder of one example, with a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="raylm-fuzz-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLM_CACHE", str(Path(name, "cache")))
        yield Path(name)


# ---- by raylm -----------------------------------------------------------------------------------------------------


def train(folder: Path, **fields: Any) -> Losses | str:
    """Return the losses of a trial of one step, or the message that it is refused with, which is checked."""
    try:
        trial = TrialConfig(**fields)
        inputs = prepare_inputs([trial], SweepRows(Folder(folder), []), lambda note: None, _no_progress)
        corpus, source = inputs.corpora[trial.corpus_key], inputs.sources[trial.model, trial.pretrained]
        evaluations = list(finetune(trial, corpus, source))
    except UserError as error:
        message = str(error)
        lines = message.split("\n  ") if isinstance(error, SweepError) else [message]
        assert all(line and line.isprintable() for line in lines), f"not one printable line: {message!r}"
        event("refused")
        return message
    assert evaluations[-1].trainer.progress.step == 1
    event("trained")
    metrics = evaluations[-1].eval_metrics
    assert metrics.tokens_seen == len(corpus.train.tokens[: trial.max_train_tokens])
    return Losses(corpus.train.tokens.tolist(), corpus.validation.tokens.tolist(), metrics.train_loss, metrics.val_loss)


@contextlib.contextmanager
def _no_progress(work: str) -> Iterator[None]:
    yield


# ---- by transformers and torch alone ------------------------------------------------------------------------------


def train_tokenizer(texts: Texts) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE of `gpt2-nano`: trained on each document, or on the whole stream."""
    bpe = ByteLevelBPETokenizer()
    parts = texts.train if texts.is_documents else ["".join(texts.train)]
    bpe.train_from_iterator(parts, vocab_size=NANO_VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, is_documents: bool) -> list[int]:
    """Return the tokens of a split: of each document and its end, or of the whole stream at once."""
    ids: list[int] = []
    for text in texts if is_documents else ["".join(texts)]:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if is_documents else []
    return ids


def expected_losses(
    trial: Mapping[str, Any],
    texts: Texts,
    tokenizer: PreTrainedTokenizerFast,
    load: Callable[[], PreTrainedModel],
    start_token: int,
) -> Losses:
    """Return the losses of a trial of one step, with dropout 0.

    Args:
        trial: fields of the trial that are not at their defaults.
        texts: text of the dataset.
        tokenizer: tokenizer of the model.
        load: loads the model at the start of the training.
        start_token: first token of each window.
    """
    model, length = load(), trial["context_length"]
    tokens = [encode(tokenizer, split, is_documents=texts.is_documents) for split in (texts.train, texts.validation)]
    used = tokens[0][: trial.get("max_train_tokens")]
    decay = trial.get("weight_decay", 0.0)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    rate = trial["learning_rate"]
    optimizer: torch.optim.Optimizer
    if trial.get("optimizer") == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=rate)
    else:
        optimizer = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False, warmup_init=False)
    model.train()
    loss = _mean_loss(model, used, length, start_token)
    loss.backward()  # type: ignore[no-untyped-call]
    if trial.get("max_grad_norm", 1.0) > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), trial.get("max_grad_norm", 1.0))
    optimizer.step()
    model.eval()
    with torch.no_grad():
        val_loss = _mean_loss(model, tokens[1], length, start_token)
    return Losses(tokens[0], tokens[1], loss.item(), val_loss.item())


def _mean_loss(model: PreTrainedModel, tokens: list[int], length: int, start_token: int) -> torch.Tensor:
    """Return the mean loss per token of windows that begin with the start token; the last one may be shorter."""
    stride, total = length - 1, torch.zeros(())
    whole = len(tokens) // stride * stride
    for part, width in ((tokens[:whole], stride), (tokens[whole:], len(tokens) - whole)):
        if part:
            targets = torch.tensor(part).view(-1, width)
            inputs = torch.cat([torch.full((len(targets), 1), start_token), targets[:, :-1]], dim=1)
            logits = model(input_ids=inputs).logits.flatten(0, 1).float()
            total = total + torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    return total / len(tokens)


def load_nano(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Callable[[], PreTrainedModel]:
    """Return a function that makes `gpt2-nano` with the random weights of a seed."""

    def load() -> PreTrainedModel:
        zero = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        sizes = {"n_positions": 1024, "n_embd": 128, "n_layer": 2, "n_head": 4}
        config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes, **zero)
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model

    return load


def load_folder(folder: Path) -> Callable[[], PreTrainedModel]:
    """Return a function that loads a model with the weights in a folder."""
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in a folder."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def assert_equal(found: Losses | str, expected: Losses) -> None:
    """Check tokens for equality and losses up to rounding."""
    assert isinstance(found, Losses), f"refused: {found}"
    assert found.train_tokens == expected.train_tokens
    assert found.validation_tokens == expected.validation_tokens
    assert math.isfinite(found.train_loss) and math.isfinite(found.val_loss)
    assert found.train_loss == pytest.approx(expected.train_loss, rel=LOSS_TOLERANCE)
    assert found.val_loss == pytest.approx(expected.val_loss, rel=LOSS_TOLERANCE)
