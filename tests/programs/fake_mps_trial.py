"""Train trials on the stand-in for Apple's GPU and on the CPU, and print their losses and what torch said as JSON.

Argument: a folder for checkpoints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_mps import stand_in

stand_in.install()

import numpy as np  # noqa: E402  (after the stand-in)
import torch  # noqa: E402
from transformers import GPT2Config  # noqa: E402

from raylm.config.trial import TrialConfig  # noqa: E402
from raylm.data.corpus import Corpus, TokenSplit  # noqa: E402
from raylm.results.progress import MicroBatching  # noqa: E402
from raylm.training import device  # noqa: E402
from raylm.training.models import ModelSource  # noqa: E402
from raylm.training.options import ExecutionOptions  # noqa: E402
from raylm.training.train import Evaluation, finetune  # noqa: E402

VOCAB_SIZE, LENGTH = 97, 16
HALVES = MicroBatching(2)


def write_model(folder: Path) -> ModelSource:
    """Write the config.json of a tiny GPT-2 and return it as a source with random weights."""
    GPT2Config(vocab_size=VOCAB_SIZE, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2).save_pretrained(folder)
    return ModelSource("gpt2", str(folder), pretrained=False)


def make_corpus() -> Corpus:
    """Return a corpus of repeated words: its loss falls."""
    tokens = np.tile(np.random.default_rng(0).integers(0, VOCAB_SIZE, 23), 12).astype(np.uint16)
    split = TokenSplit(tokens, len(tokens))
    return Corpus("pydocs", "revision", "fingerprint", split, split, VOCAB_SIZE - 1, VOCAB_SIZE, {})


def train(trial: TrialConfig, source: ModelSource, options: ExecutionOptions, **more: Any) -> Iterator[Evaluation]:
    """Return the evaluations of a trial."""
    return finetune(trial, make_corpus(), source, options=options, **more)


def losses(evaluations: Iterator[Evaluation]) -> list[float]:
    """Return the losses on both splits at each evaluation."""
    metrics = [evaluation.eval_metrics for evaluation in evaluations]
    return [loss for metric in metrics for loss in (metric.train_loss, metric.val_loss)]


def compare(trial: TrialConfig, folder: Path) -> dict[str, list[float]]:
    """Return the losses of a trial on the CPU, on `mps`, with recomputed activations there, and resumed there."""
    source = write_model(folder / "model")
    on_cpu, on_mps = ExecutionOptions("cpu", "float32", HALVES), ExecutionOptions("mps", "float32", HALVES)
    recomputed = replace(on_mps, micro_batching=replace(HALVES, recompute=True))
    first = next(train(trial, source, on_mps))
    (folder / "checkpoint").mkdir()
    first.save(folder / "checkpoint")
    return {
        "cpu": losses(train(trial, source, on_cpu)),
        "mps": losses(train(trial, source, on_mps)),
        "recomputed": losses(train(trial, source, recomputed)),
        "resumed": losses(train(trial, source, on_mps, resume_from=folder / "checkpoint")),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for optimizer, dropout in (("adafactor", 0.0), ("adamw", 0.2)):
        trial = TrialConfig(
            model="gpt2",
            pretrained=False,
            dataset="pydocs",
            context_length=LENGTH,
            batch_size=4,
            learning_rate=1e-2,
            dropout=dropout,
            optimizer=optimizer,
            weight_decay=0.01,
            evals_per_epoch=2,
        )
        folder = Path(sys.argv[1], optimizer)
        folder.mkdir()
        results[optimizer] = compare(trial, folder)
    report, operations = device.inspect_gpus(), stand_in.list_operations()
    found = {"device": device.choose_device(), "names": report.names, "left_bytes": device.gpu_bytes_in_use("mps")}
    print(json.dumps({**results, **found, "missing": stand_in.list_missing_on_mac([*operations, "_linalg_svd.U"])}))
