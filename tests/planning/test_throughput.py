"""Placement of trials on GPUs and the CPU, and the estimated time of training."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from raylm import Resources, TrialConfig
from raylm.config.catalog import MODELS
from raylm.config.validation import PRECISIONS
from raylm.errors import UserError
from raylm.numerics import LOGITS_BLOCK_ROWS as DEVICE_TYPES
from raylm.planning import devices, throughput
from raylm.planning.devices import DEVICES, Device
from raylm.planning.memory import MemoryModel
from raylm.planning.throughput import Placement
from raylm.results import json_files
from raylm.results.progress import MicroBatching
from raylm.results.sweep_record import SlotRecord
from raylm.units import GIB

NAMES = {
    "Tesla T4": "t4",
    "Tesla V100-SXM2-16GB": "v100",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "NVIDIA A10G": "a10g",
    "NVIDIA L4": "l4",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
}


@pytest.mark.parametrize(("device_name", "option"), NAMES.items())
def test_gpu_is_found_by_the_name_of_its_driver(device_name: str, option: str) -> None:
    device = devices.find_device(device_name)
    assert device is not None and device.cli_name == option
    assert throughput.parse_gpu(option) == (device, 1)


def test_all_known_gpus_are_tested() -> None:
    assert {device.cli_name for device in DEVICES} == set(NAMES.values())
    assert devices.find_device("NVIDIA A40") is None


@pytest.mark.parametrize(
    ("text", "option", "count"),
    [
        ("4090", "rtx-4090", 1),
        ("RTX4090", "rtx-4090", 1),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", 1),
        ("2x4090", "rtx-4090", 2),
        ("8 x A100 80GB", "a100-80gb", 8),
        ("a6000", "rtx-a6000", 1),
        ("Tesla V100", "v100", 1),
        ("h100_pcie", "h100-pcie", 1),
    ],
)
def test_gpu_is_found_without_the_name_of_its_maker(text: str, option: str, count: int) -> None:
    device, number = throughput.parse_gpu(text)
    assert (device.cli_name, number) == (option, count)


@pytest.mark.parametrize(
    ("gpu", "gpus", "devices_per_trial", "concurrent_trials"),
    [("a100", None, 1.0, 1), ("8xA100", None, 1.0, 8), ("2xa100", 0.25, 0.25, 8), ("5xa100", 2.0, 2.0, 2)],
)
def test_gpus_are_shared_or_combined(
    gpu: str, gpus: float | None, devices_per_trial: float, concurrent_trials: int
) -> None:
    placement = throughput.find_placement(Resources(gpus=gpus), "auto", gpu)
    assert placement is not None
    assert (placement.devices_per_trial, placement.concurrent_trials, placement.precision) == (
        devices_per_trial,
        concurrent_trials,
        "bfloat16",
    )


def test_auto_precision_is_bfloat16_on_gpus_that_have_it_else_float16() -> None:
    old, new = (throughput.find_placement(Resources(), "auto", gpu) for gpu in ("v100", "l4"))
    assert old is not None and new is not None
    assert (old.precision, new.precision) == ("float16", "bfloat16")
    assert "125 TFLOP/s in float16" in str(old)
    assert throughput.placement_from_record(throughput.placement_to_record(old)) == old


@pytest.mark.parametrize(
    ("gpu", "gpus", "words"),
    [
        ("h10", None, "did you mean 'h100'?"),
        ("rtx-5090", None, "or as 8xt4"),
        ("0xh100", None, "expected one of t4, "),
        ("", None, "expected one of t4, "),
        ("h100", 0.0, "use no GPU"),
        ("h100", 2.0, "expected --gpu 2xh100"),
    ],
)
def test_unusable_gpu_option_is_a_user_error(gpu: str, gpus: float | None, words: str) -> None:
    with pytest.raises(UserError, match="--gpu: got") as raised:
        throughput.find_placement(Resources(gpus=gpus), "auto", gpu)
    assert words in str(raised.value) and ("5090" not in gpu or "did you mean" not in str(raised.value))


def test_placement_on_the_gpus_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "NVIDIA_GPUS_DIR", tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # the driver's files count where torch is not loaded
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0")
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text("Model: \t\t NVIDIA A10G\nIRQ:   \t\t 10\n")
    placement = throughput.find_placement(Resources(), "auto")
    assert placement is not None and (placement.device.cli_name, placement.concurrent_trials) == ("a10g", 2)
    assert throughput.find_placement(Resources(gpus=3), "auto") is None
    on_cpu = throughput.find_placement(Resources(gpus=0), "auto")
    assert on_cpu is not None and on_cpu.device.type == "cpu"


def test_cpu_is_measured_and_shared_by_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "list_gpu_names", list)
    monkeypatch.setattr(throughput, "allowed_cpus", lambda: 8)
    placement = throughput.find_placement(Resources(cpus=2), "auto")
    assert placement is not None
    assert (placement.devices_per_trial, placement.concurrent_trials) == (0.25, 4)
    assert 0.001 < placement.device.float32_tflops < 1000 and 0.1 < placement.device.gb_per_s < 10_000
    assert placement.available_bytes == placement.device.memory_gib * GIB / 4
    assert throughput.find_placement(Resources(gpus=1), "auto") is None


def seconds(gpu: str = "a100", micro_batching: MicroBatching | None = None, **fields: Any) -> float:
    """Return the estimated time of a million tokens of gpt2-medium, in steps of 8 windows."""
    placement = throughput.find_placement(Resources(), "auto", gpu)
    assert placement is not None
    trial = TrialConfig(**{"model": "gpt2-medium", "context_length": 512, **fields})
    memory_model = MemoryModel(MODELS[trial.model].shape, trial, "cuda", placement.precision)
    steps = 1_000_000 // (trial.batch_size * trial.context_length)
    return placement.estimate_training_seconds(
        memory_model, micro_batching or MicroBatching(trial.batch_size), 1_000_000, steps
    )


def test_time_grows_with_the_work_and_falls_with_faster_gpus() -> None:
    assert seconds("t4") > seconds("a10g") > seconds("v100") > seconds("a100") > seconds("h100") > seconds("b200")
    assert seconds(model="gpt2") < seconds() < seconds(model="gpt2-xl")
    assert seconds(context_length=1024, batch_size=4) > seconds()
    assert 1.2 < seconds(micro_batching=MicroBatching(8, recompute=True)) / seconds() < 4 / 3


def test_placement_survives_its_record() -> None:
    placement = throughput.find_placement(Resources(gpus=0.5), "float32", "l4")
    assert isinstance(placement, Placement)
    text = json_files.encode(throughput.placement_to_record(placement))
    assert throughput.placement_from_record(json_files.decode(text, SlotRecord)) == placement


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_precision_of_a_cpu_follows_its_instructions(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(throughput, "measure_cpu", devices.measure_cpu.__wrapped__)
    placements = {name: throughput.find_placement(Resources(gpus=0), name) for name in ("auto", "float32")}
    precisions = {name: placement.precision for name, placement in placements.items() if placement}
    assert precisions == {"auto": "bfloat16" if has_bfloat16 else "float32", "float32": "float32"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", DEVICE_TYPES)
def test_every_precision_has_a_plan_on_every_type_of_device(device: str, precision: str) -> None:
    card = Device("a device", 70, 35.0, 600, 22.0, type=device)
    placement = Placement(card, 1.0, 1, devices.resolve_precision(precision, card))
    memory_model = placement.memory_model(MODELS["gpt2"].shape, TrialConfig(dropout=0.1))
    micro_batching = memory_model.choose_micro_batching(placement.available_bytes)
    assert memory_model.peak_bytes(micro_batching) > 0
    assert placement.estimate_training_seconds(memory_model, micro_batching, tokens=1000, steps=10) > 0
