"""GPUs that Ray counts and torch cannot use: trials train on the CPU, or the sweep is refused before it starts."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import raylm
from raylm import Resources, Sweep
from raylm.cli import doctor
from raylm.errors import UserError
from raylm.planning import devices
from raylm.planning.throughput import find_placement
from raylm.planning.totals import describe_launch
from raylm.training import device
from raylm.training.device import GpuReport
from raylm.tuning import nodes, ray_private, trial_process
from raylm.tuning.nodes import NodeGpus, resolve_gpus

USABLE = NodeGpus("a", 2, GpuReport(("NVIDIA H100",)))
UNUSABLE = NodeGpus("b", 1, GpuReport((), "torch 2.13.0+cpu is a build for CPUs"))
MIG = NodeGpus("c", 1, GpuReport(("NVIDIA A100-SXM4-40GB MIG 1g.5gb",)))


def small_sweep(text: Path, **options: Any) -> Sweep:
    space = {"dataset": str(text), "context_length": 32, "max_train_tokens": 300}
    return Sweep(name="mac", space=space, precision="float32", **options)


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPUs of this machine")
def test_a_cluster_whose_gpus_torch_cannot_use_trains_on_cpus_unless_gpus_are_requested(
    ray_address: str, small_text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray counts two GPUs on its node, and torch is a build for CPUs."""
    with pytest.raises(UserError, match=r"torch cannot use those of .*Ray counts 2.*torch .* is a build for CPUs"):
        raylm.run(small_sweep(small_text, resources=Resources(gpus=0.5)), storage=str(tmp_path), address=ray_address)
    result = raylm.run(small_sweep(small_text), storage=str(tmp_path), address=ray_address)
    assert result.exit_code == 0
    output = capfd.readouterr().out
    assert "warning: trials run on the CPU, because torch cannot use the GPUs of" in output
    assert output.index("`pip install --force-reinstall torch==") < output.index("started")
    (row,) = result.results.rows
    assert row.status == "done"
    (launch,) = result.results.launches
    assert launch.resources_per_trial == {"cpu": 1, "gpu": 0.0}


@pytest.mark.parametrize(
    ("requested", "found", "more", "gpus", "notes"),
    [
        (None, [USABLE], False, None, 0),
        (None, [UNUSABLE], False, 0.0, 1),
        ("auto", [UNUSABLE], False, 0.0, 1),
        (None, [], False, 0.0, 0),
        (None, [], True, None, 0),  # the autoscaler starts nodes with GPUs
        (1.0, [], False, 1.0, 0),  # refused later: no node has one
        (0.0, [UNUSABLE], False, 0.0, 0),
        ("auto", [USABLE], False, "auto", 0),
        ("auto", [USABLE, MIG], False, None, 0),  # a part of a GPU is not shared
        (0.5, [MIG], False, 0.5, 0),
    ],
)
def test_trials_take_a_gpu_only_where_torch_can_use_it(
    requested: Any, found: list[NodeGpus], more: bool, gpus: Any, notes: int
) -> None:
    shown: list[str] = []
    assert resolve_gpus(Resources(gpus=requested), found, shown.append, more=more).gpus == gpus
    assert len(shown) == notes


@pytest.mark.parametrize(
    ("requested", "found", "more"),
    [(1.0, [UNUSABLE], False), (None, [USABLE, UNUSABLE], False), ("auto", [UNUSABLE], True)],
)
def test_a_gpu_that_torch_cannot_use_is_refused_where_trials_could_be_placed_on_it(
    requested: Any, found: list[NodeGpus], more: bool
) -> None:
    with pytest.raises(UserError, match=r"those of b \(Ray counts 1\): torch 2.13.0\+cpu .*--num-gpus=0.*gpus=0"):
        resolve_gpus(Resources(gpus=requested), found, print, more=more)


def test_gpus_of_any_vendor_are_counted_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = SimpleNamespace(
        get_current_node_num_accelerators=lambda: 1, get_current_process_visible_accelerator_ids=lambda: visible
    )
    monkeypatch.setattr(ray_private, "get_accelerator_manager_for_resource", lambda name: manager)
    visible: list[str] | None = None
    assert [node.count for node in nodes.list_local_gpus()] == [1]
    visible = []  # CUDA_VISIBLE_DEVICES is empty
    assert nodes.list_local_gpus() == []


class FakeCuda:
    """Part of `torch.cuda` as a build for GPUs has it."""

    def __init__(self, name: str, capability: tuple[int, int], architectures: list[str]) -> None:
        self.is_available = lambda: True
        self.device_count = lambda: 1
        self.get_device_name = lambda number=0: name
        self.get_device_capability = lambda number=0: capability
        self.get_arch_list = lambda: architectures
        self.get_device_properties = lambda number=0: SimpleNamespace(total_memory=2**34)


def pretend_accelerator(monkeypatch: pytest.MonkeyPatch, device_type: str | None, *, available: bool = True) -> None:
    """Let `torch.accelerator` name an accelerator of this type, or none."""
    found = None if device_type is None else torch.device(device_type)
    stub = SimpleNamespace(current_accelerator=lambda: found, is_available=lambda: found is not None and available)
    monkeypatch.setattr(torch, "accelerator", stub)


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""Architectures of torch's wheel on PyPI."""


@pytest.mark.parametrize(
    ("capability", "architectures", "is_usable"),
    [
        ((7, 0), WHEEL, False),  # V100
        ((7, 0), ["sm_50", "sm_60", "sm_70", *WHEEL], True),
        ((8, 9), WHEEL, True),  # kernels of sm_86
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 1), ["sm_90"], False),
        ((12, 1), ["sm_90", "compute_90"], True),  # compiled by the driver
    ],
)
def test_a_gpu_without_kernels_is_not_usable(
    capability: tuple[int, int], architectures: list[str], is_usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeCuda("Tesla V100-SXM2-16GB", capability, architectures))
    pretend_accelerator(monkeypatch, "cuda")
    report = device.inspect_gpus()
    assert (report.problem == "") == is_usable == (report.names == ("Tesla V100-SXM2-16GB",))
    assert device.choose_device() == ("cuda" if is_usable else "cpu")
    if not is_usable:
        assert "no kernels for Tesla V100-SXM2-16GB" in report.problem and "whl/cu126" in report.problem


APPLE = GpuReport(("Apple M2",), "", "mps", (2**33,))


def pretend_mac(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    """Let this machine be a Mac with Apple silicon, whose GPU torch can use or not."""
    pretend_accelerator(monkeypatch, "mps", available=available)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M2")
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**33)


def test_a_mac_trains_on_its_gpu_in_float32_where_torch_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_mac(monkeypatch, available=True)
    assert device.inspect_gpus() == APPLE
    assert device.choose_device() == "mps"
    assert resolve_gpus(Resources(), [NodeGpus("mac", 1, APPLE)], print) == Resources()
    assert device.resolve_precision("auto", "mps") == "float32"
    with pytest.raises(UserError, match=r"bfloat16 would be emulated on Apple M2 of .*auto, which is float32 there"):
        device.resolve_precision("bfloat16", "mps")
    fractions: list[float] = []
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", fractions.append)
    trial_process.prepare_gpu(0.5)
    assert fractions == [0.5]


def test_a_mac_whose_gpu_torch_cannot_use_trains_on_its_cpu_with_a_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_mac(monkeypatch, available=False)
    assert device.choose_device() == "cpu"
    notes: list[str] = []
    assert resolve_gpus(Resources(), [NodeGpus("mac", 1, device.inspect_gpus())], notes.append).gpus == 0
    (note,) = notes
    assert "trials run on the CPU" in note and "macOS 14 or later" in note


def test_the_gpu_of_a_mac_does_not_train_together_with_another() -> None:
    with pytest.raises(UserError, match=r"gpus=2, but Apple M2 of mac does not train together .* expected gpus=1"):
        resolve_gpus(Resources(gpus=2.0), [NodeGpus("mac", 2, APPLE)], print)


def test_an_accelerator_that_raylm_does_not_know_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch, "xpu")
    assert device.choose_device() == "cpu"
    assert device.inspect_gpus().problem.endswith("calls xpu")


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_a_build_for_cpus_is_named_with_the_command_that_installs_another(
    vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_accelerator(monkeypatch, None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setattr(device, "AMD_DRIVER_FILE", tmp_path if vendor == "amd" else tmp_path / "missing")
    problem = device.inspect_gpus().problem
    command = "pip install --force-reinstall torch==2.13.0" + (" --index-url URL` with" if vendor == "amd" else "`")
    assert f"torch 2.13.0+cpu is a build for CPUs; install one for {vendor.upper()}'s GPUs: `{command}" in problem


@pytest.mark.parametrize(
    ("count", "report", "status"),
    [
        (1, APPLE, "Apple M2 (8 GiB); trials train on mps in float32"),
        (0, APPLE, "0 according to Ray, 1 to torch: Apple M2 (8 GiB); trials train on cpu in float32"),
        (1, GpuReport((), "too old"), "1 according to Ray, 0 to torch; trials train on cpu in float32"),
        (0, GpuReport((), "none"), "none; trials train on cpu in float32"),
    ],
)
def test_doctor_says_what_torch_and_ray_see_and_what_trials_train_on(
    count: int, report: GpuReport, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "inspect_gpus", lambda: report)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    result = doctor._check_gpus("mac", count, doctor.collect_facts())
    assert (result.status, result.advice) == (status, report.problem if count else "")


def test_plan_does_not_estimate_for_a_mac_as_if_it_trained_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(name="mac", space={"dataset": "pydocs"})
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert find_placement(Resources(), "auto") is None
    lines = describe_launch(sweep, sweep.trials(), 1, is_here=True)
    assert lines[-1] == "plan: time and memory on Apple silicon are not known"


def test_plan_takes_the_gpus_of_torch_where_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under WSL2 and with AMD's GPUs, no driver describes them in files; with a build for CPUs, no trial uses them."""
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA A10G\n")
    monkeypatch.setattr(devices, "NVIDIA_GPUS_DIR", tmp_path)
    monkeypatch.setattr(torch, "cuda", FakeCuda("NVIDIA H100 80GB HBM3", (9, 0), WHEEL))
    assert devices.list_gpu_names() == ["NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.list_gpu_names() == []
    monkeypatch.delitem(sys.modules, "torch")
    for version, names in (("2.13.0+cpu", []), ("2.13.0", ["NVIDIA A10G"])):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        assert devices.list_gpu_names() == names


def test_a_part_of_a_gpu_is_no_known_device() -> None:
    assert devices.find_device("NVIDIA H100 80GB HBM3") is not None
    assert devices.find_device("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
