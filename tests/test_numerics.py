"""Detection of bfloat16 products of a processor without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm import numerics


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16 clzero\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),  # ARM
        ("flags\t\t: fpu avx2 avx512f avx512_bf16x\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_found_in_the_flags_of_the_processor(
    cpuinfo: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(numerics, "CPUINFO_FILE", tmp_path / "cpuinfo")
    for variable in numerics.ONEDNN_ISA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert numerics.cpu_has_bfloat16() == expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not numerics.cpu_has_bfloat16()


def test_a_system_without_cpuinfo_has_no_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "CPUINFO_FILE", tmp_path / "missing")
    assert not numerics.cpu_has_bfloat16()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "DEFAULT", "DNNL_MAX_CPU_ISA": "AVX2"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX2"}, True),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, False),
    ],
)
def test_only_a_limit_of_onednn_emulates_bfloat16(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in numerics.ONEDNN_ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert numerics.onednn_emulates_bfloat16() == expected
