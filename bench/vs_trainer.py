"""The same trial by raylm's loop and by transformers' Trainer: same weights, windows, order, schedule; dropout 0.

    python bench/vs_trainer.py [--dataset wikitext2] [--max-train-tokens 200000]

Prints both val losses, both times of training, and the val loss of a unigram model of the train split. `wikitext2` asks
the hub; `pydocs` needs none. Needs `accelerate`, which Trainer does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from raylm import TrialConfig
from raylm.data.corpus import IGNORE_INDEX, Corpus, Windows
from raylm.data.preparation import prepare
from raylm.training import models, optim
from raylm.training.train import finetune
from raylm.training.validation import build_training_windows, validation_loss


class WindowDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """raylm's windows in an order, as Trainer takes them: labels are inputs, shifted by the model.

    The first one is no target. Were it labelled, Trainer would count it, and its losses would be too small.
    """

    def __init__(self, windows: Windows, order: Sequence[int]) -> None:
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        inputs_1T, _ = self.windows.get_batch([self.order[number]])
        inputs = np.full(self.windows.context_length, self.windows.eos_token_id)
        labels = np.full(self.windows.context_length, IGNORE_INDEX)
        inputs[: inputs_1T.shape[1]] = labels[: inputs_1T.shape[1]] = inputs_1T[0]
        labels[0] = IGNORE_INDEX
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def training_set(config: TrialConfig, corpus: Corpus) -> WindowDataset:
    """The training windows in the order of raylm's first epoch."""
    windows = build_training_windows(config, corpus)
    return WindowDataset(windows, np.random.default_rng([config.seed, 0]).permutation(len(windows)).tolist())


def training_arguments(config: TrialConfig, folder: str, **more: Any) -> TrainingArguments:
    """An epoch with Adafactor as raylm's, and no report to anybody."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=1,
        learning_rate=config.learning_rate,
        optim="adafactor",
        max_grad_norm=config.max_grad_norm,
        weight_decay=0.0,
        report_to="none",
        disable_tqdm=True,
        **more,
    )


class InOrder(Trainer):
    """Trainer without its own shuffling, with raylm's schedule."""

    def __init__(self, config: TrialConfig, **named: Any) -> None:
        self.config = config
        super().__init__(**named)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The rate of each step as a share of the peak rate."""
        peak = self.config.learning_rate
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: (
                optim.learning_rate_at(self.config, min(step, num_training_steps - 1), num_training_steps) / peak
            ),
        )
        return self.lr_scheduler


def by_trainer(config: TrialConfig, corpus: Corpus) -> tuple[float, float]:
    """Val loss and seconds of training of transformers' Trainer with `optim="adafactor"`."""
    model = models.load_model(
        models.resolve_model(config.model, pretrained=True),
        vocab_size=corpus.vocab_size,
        dropout=config.dropout,
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(config, folder, save_strategy="no", logging_strategy="no")
        trainer = InOrder(config, model=model, args=arguments, train_dataset=training_set(config, corpus))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return validation_loss(model, corpus, config.context_length, config.batch_size, "float32"), seconds


def by_raylm(config: TrialConfig, corpus: Corpus) -> tuple[float, float]:
    """Val loss and seconds of training of raylm's loop."""
    (last,) = finetune(config, corpus, models.resolve_model(config.model, pretrained=True))
    return last.eval_metrics.val_loss, last.trainer.progress.training_seconds


def unigram_loss(config: TrialConfig, corpus: Corpus) -> float:
    """Val loss of token frequencies of what is trained on, one added to each count."""
    counts = np.bincount(corpus.train.tokens[: config.max_train_tokens], minlength=corpus.vocab_size) + 1
    return float(-np.log(counts / counts.sum())[corpus.validation.tokens].mean())


def main() -> None:
    """Trains twice and prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="wikitext2")
    parser.add_argument("--max-train-tokens", type=int, default=200_000)
    asked = parser.parse_args()
    config = TrialConfig(
        dataset=asked.dataset,
        context_length=128,
        learning_rate=1e-3,
        dropout=0.0,
        max_train_tokens=asked.max_train_tokens,
    )
    corpus = prepare(config.dataset, None, config.model)
    (ours, our_seconds), (theirs, their_seconds) = by_raylm(config, corpus), by_trainer(config, corpus)
    measured = {
        "raylm_val_loss": ours,
        "trainer_val_loss": theirs,
        "unigram_val_loss": unigram_loss(config, corpus),
        "raylm_seconds": our_seconds,
        "trainer_seconds": their_seconds,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
