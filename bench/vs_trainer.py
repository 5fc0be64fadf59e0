"""Compare the same trial by raylm's loop and transformers' Trainer: same weights, windows, order, schedule; dropout 0.

    python bench/vs_trainer.py [--dataset wikitext2] [--max-train-tokens 200000]

Prints both val losses, both training times, and the val loss of a unigram model of the train split. `wikitext2` is
downloaded from the hub; `pydocs` needs no download. Needs `accelerate`, as Trainer does.
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
from raylm.training import models
from raylm.training.optim.schedule import learning_rate_at
from raylm.training.train import finetune
from raylm.training.validation import build_training_windows, validation_loss


class WindowDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """raylm's windows in a fixed order, in Trainer's format: labels are inputs, shifted by the model.

    The first position has no label: Trainer would count it, and its losses would be too small.
    """

    def __init__(self, windows: Windows, order: Sequence[int]) -> None:
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        inputs_1T, _ = self.windows.get_batch([self.order[number]])
        inputs = np.full(self.windows.context_length, self.windows.start_token_id)
        labels = np.full(self.windows.context_length, IGNORE_INDEX)
        inputs[: inputs_1T.shape[1]] = labels[: inputs_1T.shape[1]] = inputs_1T[0]
        labels[0] = IGNORE_INDEX
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def build_training_set(config: TrialConfig, corpus: Corpus) -> WindowDataset:
    """Return the training windows in the order of raylm's first epoch."""
    windows = build_training_windows(config, corpus)
    return WindowDataset(windows, np.random.default_rng([config.seed, 0]).permutation(len(windows)).tolist())


def build_training_arguments(config: TrialConfig, folder: str, **options: Any) -> TrainingArguments:
    """Return arguments for one epoch with raylm's Adafactor settings, without reporting."""
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
        **options,
    )


class OrderedTrainer(Trainer):
    """Trainer without shuffling, with raylm's learning rate schedule."""

    def __init__(self, config: TrialConfig, **options: Any) -> None:
        self.config = config
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Set the learning rate of each step, relative to the peak rate."""
        peak = self.config.learning_rate
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate_at(self.config, min(step, num_training_steps - 1), num_training_steps) / peak,
        )
        return self.lr_scheduler


def train_by_trainer(config: TrialConfig, corpus: Corpus) -> tuple[float, float]:
    """Return val loss and training seconds of transformers' Trainer with `optim="adafactor"`."""
    model = models.load_model(
        models.resolve_model(config.model, pretrained=True),
        vocab_size=corpus.vocab_size,
        dropout=config.dropout,
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = build_training_arguments(config, folder, save_strategy="no", logging_strategy="no")
        trainer = OrderedTrainer(config, model=model, args=arguments, train_dataset=build_training_set(config, corpus))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return validation_loss(model, corpus, config.context_length, config.batch_size, "float32"), seconds


def train_by_raylm(config: TrialConfig, corpus: Corpus) -> tuple[float, float]:
    """Return val loss and training seconds of raylm's loop."""
    (last,) = finetune(config, corpus, models.resolve_model(config.model, pretrained=True))
    return last.eval_metrics.val_loss, last.trainer.progress.training_seconds


def unigram_loss(config: TrialConfig, corpus: Corpus) -> float:
    """Return the val loss of the training tokens' frequencies, with one added to each count."""
    counts = np.bincount(corpus.train.tokens[: config.max_train_tokens], minlength=corpus.vocab_size) + 1
    return float(-np.log(counts / counts.sum())[corpus.validation.tokens].mean())


def main() -> None:
    """Train with both and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="wikitext2")
    parser.add_argument("--max-train-tokens", type=int, default=200_000)
    args = parser.parse_args()
    config = TrialConfig(
        dataset=args.dataset,
        context_length=128,
        learning_rate=1e-3,
        dropout=0.0,
        max_train_tokens=args.max_train_tokens,
    )
    corpus = prepare(config.dataset_spec, None, config.model)
    (ours, our_seconds), (theirs, their_seconds) = train_by_raylm(config, corpus), train_by_trainer(config, corpus)
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
