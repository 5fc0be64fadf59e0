"""Installation of the stand-in for Apple's GPU in a process. Import nothing that imports torch before `install`."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from fake_cuda import guard

SOURCE = Path(__file__).with_name("mps_on_host.cpp")
SITE = Path(__file__).with_name("site")
"""Folder whose `sitecustomize` installs the stand-in in each Python process that has it on its path."""
GPU_NAME = "Apple M2"


def can_install() -> bool:
    """Return whether this machine can build the stand-in, and torch is a build for CPUs; imports torch."""
    from torch import version

    return guard.can_build() and version.cuda is None and version.hip is None


def build() -> Path:
    """Return the library of the stand-in, compiled now unless it is in the temporary folder."""
    return guard.build(SOURCE)


class _TorchHook(MetaPathFinder):
    """Finder that finds nothing: it loads the library when torch is about to be imported, and completes `torch._C`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None."""
        if fullname == "torch":
            ctypes.CDLL(str(build()), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
        elif fullname == "torch.backends.mps":  # after torch._C
            core: Any = sys.modules["torch._C"]
            core._has_mps, core._mps_get_name = True, lambda: GPU_NAME
        return None


def install() -> None:
    """Make torch, when this process imports it, find the GPU of a Mac.

    Raises:
        RuntimeError: if torch is imported already: it has asked for its hooks.
    """
    if "torch" in sys.modules:
        raise RuntimeError("install the stand-in before torch is imported")
    sys.meta_path.insert(0, _TorchHook())


def list_operations() -> list[str]:
    """Return the names of the operations that have run on the stand-in in this process, as `add.out`."""
    library = ctypes.CDLL(str(build()))
    library.fake_mps_operations.restype = ctypes.c_char_p
    return [name.removeprefix("aten::") for name in library.fake_mps_operations().decode().split()]


def list_missing_on_mac(operations: Sequence[str]) -> list[str]:
    """Return the operations for which torch's build for a Mac has no kernel, by the table that it is built from."""
    folder = Path(str(importlib.metadata.distribution("torch").locate_file("torchgen")))
    text = (folder / "packaged" / "ATen" / "native" / "native_functions.yaml").read_text(encoding="utf-8")
    table = {entry["func"].split("(")[0]: entry for entry in yaml.load(text, yaml.CSafeLoader)}
    return [name for name in operations if not _has_kernel(table, name)]


def _has_kernel(table: dict[str, Any], name: str) -> bool:
    """Return whether an operation has a kernel for `mps`, of its own or made of other operations."""
    entry = table.get(name)
    if entry is None:  # generated from the functional one, which then counts
        base, _, overload = name.partition(".")
        sources = [base.removesuffix("_"), f"{base}.{overload.removesuffix('_out')}", base, f"{base}_"]
        return any(_has_kernel(table, source) for source in sources if source in table and source != name)
    if delegate := entry.get("structured_delegate"):
        return _has_kernel(table, delegate)
    kernels = {
        key.strip() for keys in entry.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in keys.split(",")
    }
    return "MPS" in kernels or any(kernel.startswith("Composite") for kernel in kernels)
