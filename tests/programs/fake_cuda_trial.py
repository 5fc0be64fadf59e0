"""Train a trial on fake CUDA tensors, and print what its steps did as JSON.

Arguments: fields of the trial as JSON, and its number of steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda import guard

guard.load()

import torch  # noqa: E402
from fake_cuda.tensors import fake_cuda  # noqa: E402  (after the guard)
from fake_cuda.trial import OperationCounter, random_corpus, write_config  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.optim import Optimizer  # noqa: E402

from raylm.config.trial import TrialConfig  # noqa: E402
from raylm.training import checkpoint  # noqa: E402
from raylm.training.optim.optimizer import build_optimizer  # noqa: E402
from raylm.training.options import ExecutionOptions  # noqa: E402
from raylm.training.train import finetune  # noqa: E402
from raylm.training.trainer import Trainer  # noqa: E402


def resume_optimizer(trial: TrialConfig, trainer: Trainer) -> Optimizer:
    """Return a new optimizer with the state of the trainer's one, after a step of it; tensors never reach a disk."""
    tensors = checkpoint._optimizer_tensors(trainer.optimizer)
    optimizer = build_optimizer(trial, trainer.model)
    with mock.patch.object(checkpoint, "load_file", lambda file: tensors):
        checkpoint.load_optimizer(Path(), optimizer)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def count_state_by_device(optimizer: Optimizer) -> dict[str, int]:
    """Return the number of tensors of an optimizer's state on each type of device."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Counter(tensor.device.type for tensor in tensors)


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    trial = TrialConfig(**fields)
    with tempfile.TemporaryDirectory() as folder:
        source = write_config(trial.model, Path(folder))
        corpus = random_corpus(trial, num_windows=int(sys.argv[2]) * trial.batch_size)
        with fake_cuda() as waits, OperationCounter() as counter:
            (evaluation,) = finetune(trial, corpus, source, options=ExecutionOptions("cuda", "bfloat16"))
            trainer, num_waits = evaluation.trainer, len(waits)
            resumed = count_state_by_device(resume_optimizer(trial, trainer))
    steps = trainer.progress.step
    print(json.dumps({"steps": steps, "waits": num_waits, "resumed": resumed, "operations": counter.counts}))
