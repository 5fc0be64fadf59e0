"""`Resources(gpus="auto")`: small trials share a GPU where all fit and more gets done. Ray is told of GPUs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from oracle import read_stable_table
from ray_cluster import run_on_cluster, start_cluster

from raylm import Resources, Sweep, TrialConfig
from raylm.config.catalog import MODELS
from raylm.errors import WorkError
from raylm.planning import throughput
from raylm.planning.memory import MemoryModel
from raylm.planning.throughput import Placement, gpu_fraction, trials_per_gpu
from raylm.results.progress import MicroBatching
from raylm.tuning.prepare import LaunchContext

H100, T4 = (throughput.parse_gpu(name)[0] for name in ("h100", "t4"))


def workload(model: str = "gpt2-nano", context_length: int = 128, batch_size: int = 2) -> MemoryModel:
    trial = TrialConfig(model=model, context_length=context_length, batch_size=batch_size)
    return MemoryModel(MODELS[model].shape, trial, "cuda", "bfloat16")


def test_a_trial_that_fills_a_card_has_it_alone_and_smaller_ones_share_it() -> None:
    slot = Placement(H100, 1.0, 1, "bfloat16", max_trials_per_device=8)
    numbers = [trials_per_gpu(slot, work) for work in (workload(), workload("gpt2"), workload("gpt2-xl", 1024, 16))]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] == 3 and numbers[-1] == 1
    assert trials_per_gpu(replace(slot, max_trials_per_device=1), workload()) == 1


def test_sharing_gets_more_done_by_the_estimate() -> None:
    slot, work = Placement(H100, 1.0, 1, "bfloat16", max_trials_per_device=8), workload()
    shared, fit = slot.with_sharing(work), MicroBatching(2)
    assert (shared.devices_per_trial, shared.concurrent_trials) == (
        1 / trials_per_gpu(slot, work),
        trials_per_gpu(slot, work),
    )
    alone, beside = (one.estimate_training_seconds(work, fit, 256, 1) for one in (slot, shared))
    assert beside / shared.concurrent_trials < alone / 1.1


def test_no_trial_takes_a_smaller_micro_batch_to_share() -> None:
    slot, work = Placement(H100, 1.0, 1, "bfloat16", max_trials_per_device=8), workload()
    whole = work.choose_micro_batching(slot.available_bytes)
    gib = 1.9 * work.peak_bytes(whole) / 2**30 / 0.85  # not for two of them
    small = replace(slot, device=replace(H100, memory_gib=gib))
    assert trials_per_gpu(small, work) == 1 < trials_per_gpu(slot, work)
    assert work.choose_micro_batching(small.with_sharing(work).available_bytes) == whole


def test_on_several_kinds_of_cards_a_trial_takes_what_it_needs_on_any() -> None:
    trial, shape = workload().config, MODELS["gpt2-nano"].shape
    on_both = gpu_fraction([(H100, 8), (T4, 8)], shape, trial, "auto")
    assert on_both == max(gpu_fraction([(card, 8)], shape, trial, "auto") for card in (H100, T4)) == 0.5
    assert gpu_fraction([(H100, 8)], shape, trial, "auto") < 0.5, "a faster card has room for more"
    assert gpu_fraction([(H100, 1)], shape, trial, "auto") == 1, "there are no CPUs for a second one"
    assert gpu_fraction([], shape, trial, "auto") == gpu_fraction([(H100, 8)], None, trial, "auto") == 1


def test_the_shares_of_a_card_are_never_more_than_ray_has_of_it() -> None:
    trial, shape = workload().config, MODELS["gpt2-nano"].shape
    for most in range(1, 9):
        part = gpu_fraction([(H100, most)], shape, trial, "auto")
        number = min(most, 3)  # by the estimate, a fourth trial would wait for the others
        assert part * number <= 1 < (part + 1e-4) * number + 1e-9 and round(part, 4) == part


def test_a_plan_counts_the_trials_that_share() -> None:
    slot = throughput.find_placement(Resources(gpus="auto"), "auto", "2xh100")
    assert slot is not None and (slot.devices_per_trial, slot.concurrent_trials, slot.max_trials_per_device) == (
        1.0,
        2,
        8,
    )
    assert slot.with_sharing(workload()).concurrent_trials == 6


@pytest.mark.ray
@pytest.mark.parametrize(("gpu", "concurrent"), [("H100", 2), pytest.param("unheard-of", 1, marks=pytest.mark.chaos)])
def test_two_trials_share_the_one_gpu_that_ray_has(small_text: Path, tmp_path: Path, gpu: str, concurrent: int) -> None:
    rates = {"grid_search": [1e-4, 1e-3]}
    space = {"dataset": str(small_text), "context_length": 16, "batch_size": 2, "epochs": 4, "learning_rate": rates}
    sweep = Sweep(name="auto", space=space, resources=Resources(gpus="auto"))
    with start_cluster(num_cpus=2, num_gpus=1, resources={f"accelerator_type:{gpu}": 1}) as cluster:
        done = run_on_cluster(sweep, tmp_path, cluster.address)
    assert done.exit_code == 0, done.output
    assert [row["status"] for row in read_stable_table(done.folder).values()] == ["done"] * 2
    events = re.findall(r"^\S+  (started|done)\b", done.output, re.MULTILINE)
    assert events == (["started"] * 2 + ["done"] * 2 if concurrent == 2 else ["started", "done"] * 2)


@pytest.mark.parametrize(("model", "gib"), [("gpt2", 22.0), ("gpt2-xl", 15.6)])
def test_a_trial_on_a_gpu_starts_with_what_fits_and_falls_back_by_peak_memory(
    monkeypatch: pytest.MonkeyPatch, model: str, gib: float
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, int(gib * 2**30)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    trial, shape = workload(model, 1024, 8).config, MODELS[model].shape
    fields: dict[str, Any] = {"shapes": {(model, True): shape}, "device": "cuda", "world_size": 1, "gpus_per_rank": 1.0}
    context = cast(LaunchContext, SimpleNamespace(**fields))
    options = LaunchContext.plan_options(context, trial, "bfloat16", None)
    assert options.micro_batching == MicroBatching(8, recompute=model == "gpt2-xl")
    smaller = options.next_smaller(MicroBatching(8 if model == "gpt2" else 1))
    assert smaller == (MicroBatching(3) if model == "gpt2" else MicroBatching(8, recompute=True))
    assert options.min_steps_to_compile is not None and options.min_steps_to_compile > 1000
    fields["gpus_per_rank"] = 0.05
    with pytest.raises(WorkError, match=f"{model} at context length 1,024 .* and has {gib / 20:.1f} GiB"):
        LaunchContext.plan_options(cast(LaunchContext, SimpleNamespace(**fields)), trial, "bfloat16", None)
