"""Numbers of a running trial as gauges of Ray, which each node hands to Prometheus with `ray_` before their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch
from ray.util.metrics import Gauge

from raylm.progress import Step

GAUGES = {
    "raylm_train_loss": "Training loss of the last step, nats per token.",
    "raylm_val_loss": "Validation loss of the last evaluation, nats per token.",
    "raylm_adj_val_loss": "Validation loss of the last evaluation, nats per word.",
    "raylm_step": "Optimizer steps done.",
    "raylm_total_steps": "Optimizer steps of the whole trial.",
    "raylm_tokens_seen": "Training tokens so far, over all epochs.",
    "raylm_tokens_per_second": "Training tokens per second of optimizer steps.",
    "raylm_memory_bytes": "Memory of the trial's first process: of its GPU at its peak, without one of the process.",
}
"""What is exported, with what it means; each by sweep and run."""
TAGS = ("sweep", "run")


class Gauges:
    """Those of one trial. A node exports what was set since it was last asked, so all of them are set each time."""

    def __init__(self, sweep: str, run: str, device: str) -> None:
        self._tags, self._device = {"sweep": sweep, "run": run}, device
        self._gauges = {name: Gauge(name, description, tag_keys=TAGS) for name, description in GAUGES.items()}
        self._losses: dict[str, float] = {}

    def stepped(self, step: Step) -> None:
        """Sets what there is to say after a step."""
        values = {
            "raylm_train_loss": step.loss,
            "raylm_step": step.step,
            "raylm_total_steps": step.total_steps,
            "raylm_tokens_seen": step.tokens_seen,
            "raylm_tokens_per_second": step.tokens_per_second,
            "raylm_memory_bytes": self._memory_bytes(),
            **self._losses,
        }
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the losses of an evaluation, to be set with the steps that follow."""
        named = {f"raylm_{name}": metrics.get(name) for name in ("val_loss", "adj_val_loss")}
        self._losses |= {name: value for name, value in named.items() if value is not None}

    def _memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else int(psutil.Process().memory_info().rss)
