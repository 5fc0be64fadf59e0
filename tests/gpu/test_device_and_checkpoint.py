"""A GPU as trials use it: the allocator's options, a share of its memory, checkpoints that are copied to the host.

On the fake GPU copies move no numbers; the test that compares them is telling on a real one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_cuda.trial import random_corpus

from gpu.counters import IS_FAKE
from raylm.config.trial import TrialConfig
from raylm.planning import devices
from raylm.planning.memory import RUNTIME_BASELINE_BYTES
from raylm.results import manifest
from raylm.results.progress import MicroBatching
from raylm.training import checkpoint, device, models
from raylm.training.options import ExecutionOptions
from raylm.training.train import finetune

CONTEXT_BYTES = RUNTIME_BASELINE_BYTES["cuda"]


@pytest.fixture
def total_bytes() -> Iterator[int]:
    """Memory of the GPU, without a limit before and after."""
    torch.cuda.empty_cache()
    yield torch.cuda.mem_get_info()[1]
    device.limit_gpu_memory(1.0, CONTEXT_BYTES)
    torch.cuda.empty_cache()


def test_torch_can_use_the_gpu_and_plans_name_it() -> None:
    report = device.inspect_gpus()
    assert report.problem == "" and list(report.names) == devices.list_gpu_names()


@pytest.mark.skipif(any(name in os.environ for name in device.ALLOCATOR_VARIABLES), reason="the user has set options")
def test_the_allocator_holds_segments_that_grow_although_torch_is_imported(total_bytes: int) -> None:
    """torch reads the variables of the environment when it is imported, which Ray's workers have done."""
    device.set_allocator_options()
    kept = torch.empty(2**26, device="cuda")
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    assert any(segment["is_expandable"] for segment in segments)
    del kept


def test_a_process_runs_out_of_its_share_of_the_memory(total_bytes: int) -> None:
    device.limit_gpu_memory(0.25, CONTEXT_BYTES)
    fits = torch.empty(int(0.2 * total_bytes) - CONTEXT_BYTES, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(0.05 * total_bytes) + CONTEXT_BYTES, dtype=torch.uint8, device="cuda")
    del fits
    device.limit_gpu_memory(1.0, CONTEXT_BYTES)
    torch.empty(int(0.4 * total_bytes), dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_checkpoint_that_is_copied_to_the_host_is_written_while_training_continues(
    optimizer: str, tmp_path: Path
) -> None:
    trial = TrialConfig(context_length=32, batch_size=2, evals_per_epoch=2, optimizer=optimizer)
    corpus, source = random_corpus(trial, 11, 500), models.resolve_model("gpt2-nano", pretrained=True)
    options = ExecutionOptions("cuda", "float32", MicroBatching(2))
    running = finetune(trial, corpus, source, options=options)
    first = next(running)
    folders = [tmp_path / name for name in ("copied", "at-once")]
    for folder in folders:
        folder.mkdir()
    complete = first.start_saving(folders[0], max_copy_bytes=math.inf)
    assert list(folders[0].iterdir()) == []
    first.save(folders[1])
    last = next(running)
    complete()
    assert all(map(manifest.verify, folders))
    copied, at_once = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert {name: len(content) for name, content in copied.items()} == {
        name: len(content) for name, content in at_once.items()
    }
    assert IS_FAKE or copied == at_once
    (resumed,) = finetune(trial, corpus, source, options=options, resume_from=folders[0])
    assert resumed.eval_metrics.step == last.eval_metrics.step


def test_copies_are_in_pinned_memory() -> None:
    weights, state = checkpoint._copy_to_host({"a": torch.ones(3, device="cuda")}, {"b": torch.ones(2, device="cuda")})
    assert weights["a"].is_pinned() and state["b"].is_pinned()
