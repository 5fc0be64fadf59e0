"""Training loop by transformers and torch alone, as written by hand for a search: the fastest of what they offer.

Model and optimizer are transformers', with SDPA; its function computes the loss. Imports nothing of raylm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor

EVAL_BATCH_SIZE = 64


def train(task_file: Path, learning_rate: float, folder: Path) -> float:
    """Train one epoch, evaluate, save a checkpoint into `folder`, and return the val loss per token.

    Args:
        task_file: file of `sweep_peers.write_task`.
        learning_rate: peak rate.
        folder: directory of the checkpoint.
    """
    task = torch.load(task_file)
    torch.manual_seed(task["seed"])
    model = GPT2LMHeadModel(GPT2Config(**task["model"], attn_implementation="sdpa")).train()
    optimizer = Adafactor(
        model.parameters(), lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    factors = task["factors"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, len(factors) - 1)])
    for inputs_BT, labels_BT in DataLoader(TensorDataset(*task["train"]), batch_size=task["batch_size"]):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task["bf16"]):
            loss = model(input_ids=inputs_BT, labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    val_loss = evaluate(model, task)
    model.save_pretrained(folder)
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, folder / "state.pt")
    return val_loss


def evaluate(model: GPT2LMHeadModel, task: dict[str, Any]) -> float:
    """Return the mean loss per token of the validation windows."""
    model.eval()
    total, num_tokens = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=task["bf16"]):
        for inputs_BT, labels_BT in DataLoader(TensorDataset(*task["validation"]), batch_size=EVAL_BATCH_SIZE):
            count = int((labels_BT[:, 1:] != -100).sum())
            total += model(input_ids=inputs_BT, labels=labels_BT, use_cache=False).loss.item() * count
            num_tokens += count
    return total / num_tokens
