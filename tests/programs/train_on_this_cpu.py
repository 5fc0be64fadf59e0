"""Train one small trial in both precisions and with several numbers of threads; print the losses of each as JSON.

Usage: python train_on_this_cpu.py FOLDER THREADS,... with $ATEN_CPU_CAPABILITY set. FOLDER is a dataset. No Ray.
"""

from __future__ import annotations

import json
import sys

import torch

from raylm import TrialConfig
from raylm.data import preparation
from raylm.results.progress import LOSS_NAMES
from raylm.training import models
from raylm.training.options import ExecutionOptions
from raylm.training.train import finetune

PRECISIONS = ("float32", "bfloat16")


def main(dataset: str, thread_counts: str) -> None:
    """Print {"capability": ..., "losses": {"PRECISION THREADS": [train, val and adj val loss]}}."""
    source = models.resolve_model("gpt2-nano", pretrained=True)
    config = TrialConfig(dataset=dataset, context_length=64, batch_size=8, learning_rate=1e-3, epochs=2)
    corpus = preparation.prepare(config.dataset_spec, None, config.model)
    losses = {}
    for precision in PRECISIONS:
        for threads in map(int, thread_counts.split(",")):
            torch.set_num_threads(threads)
            *_, last = finetune(config, corpus, source, options=ExecutionOptions(precision=precision))
            losses[f"{precision} {threads}"] = [getattr(last.eval_metrics, name) for name in LOSS_NAMES]
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "losses": losses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
