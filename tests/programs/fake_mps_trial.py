"""Train trials on the stand-in for Apple's GPU and on the CPU, and print their losses and what torch said as JSON.

Argument: a folder for checkpoints.
"""

from __future__ import annotations

import copy
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

from raylm.config.catalog import ModelShape  # noqa: E402
from raylm.config.trial import TrialConfig  # noqa: E402
from raylm.data.corpus import Corpus, TokenSplit  # noqa: E402
from raylm.planning.memory import MemoryModel  # noqa: E402
from raylm.results.progress import MicroBatching  # noqa: E402
from raylm.training import device, models  # noqa: E402
from raylm.training.models import ModelSource  # noqa: E402
from raylm.training.options import ExecutionOptions  # noqa: E402
from raylm.training.train import Evaluation, finetune  # noqa: E402

VOCAB_SIZE, LENGTH = 97, 16
HALVES = MicroBatching(2)


def write_model(folder: Path) -> ModelSource:
    """Write the config.json of a tiny GPT-2 and return it as a source with random weights."""
    sizes = {"vocab_size": VOCAB_SIZE, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2Config(**sizes, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
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


def count_saved_bytes(folder: Path, dropout: float) -> dict[str, float]:
    """Return the bytes that a layer saves for the backward pass, by autograd and by the plan."""
    source = write_model(folder)
    counted = []
    for num_layers in (2, 3):
        model = models.load_model(source, vocab_size=VOCAB_SIZE, dropout=dropout, seed=0)
        model.base_model.h.extend(copy.deepcopy(model.base_model.h[0]) for _ in range(num_layers - 2))
        model.to("mps").train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        saved: dict[int, torch.Tensor] = {}  # the tensors themselves, so that no storage is reused

        def save(tensor: torch.Tensor, weights: set[int] = weights, saved: dict[int, torch.Tensor] = saved) -> Any:
            if tensor.untyped_storage().data_ptr() not in weights:
                saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            model.base_model(input_ids=torch.zeros(2, LENGTH, dtype=torch.long, device="mps"), use_cache=False)
        counted.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    shape = ModelShape(1, 16, 2, VOCAB_SIZE, LENGTH)
    trial = TrialConfig(context_length=LENGTH, batch_size=2, dropout=dropout)
    planned = MemoryModel(shape, trial, "mps", "float32").saved_bytes(MicroBatching(2))
    return {"counted": counted[1] - counted[0], "planned": planned}


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
    found["saved"] = [count_saved_bytes(Path(sys.argv[1], "layers"), dropout) for dropout in (0.0, 0.1)]
    print(json.dumps({**results, **found, "missing": stand_in.list_missing_on_mac([*operations, "_linalg_svd.U"])}))
