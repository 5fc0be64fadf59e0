"""Build of the device guard for fake CUDA tensors. Import nothing that imports torch before `load`."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device_guard.cpp")
HEADER = Path(__file__).with_name("no_op_guard.h")
COMPILER = "g++"


def can_build() -> bool:
    """Return whether the guard can be built and loaded: on Linux with g++, for a torch that has no CUDA hooks."""
    is_cuda_build = (_torch_dir() / "lib" / "libtorch_cuda.so").exists()
    return sys.platform == "linux" and shutil.which(COMPILER) is not None and not is_cuda_build


def _torch_dir() -> Path:
    return Path(str(importlib.metadata.distribution("torch").locate_file("torch")))


def build(source: Path = SOURCE) -> Path:
    """Return the library of a source, by default of the guard, compiled now unless it is in the temporary folder."""
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(source.read_bytes() + HEADER.read_bytes() + version.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir(), f"raylm-{source.stem.replace('_', '-')}-{os.getuid()}-{key}.so")
    if not library.exists():
        torch_dir = _torch_dir()
        partial = library.with_suffix(f".{os.getpid()}")
        include = [HEADER.parent, torch_dir / "include", torch_dir / "include/torch/csrc/api/include"]
        command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", "-w", *(f"-I{folder}" for folder in include)]
        command += [str(source), "-o", str(partial), f"-L{torch_dir / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run([*command, f"-Wl,-rpath,{torch_dir / 'lib'}"], check=True)
        partial.rename(library)
    return library


def load() -> None:
    """Load the guard into this process.

    Raises:
        RuntimeError: if torch is imported already: it has asked for its hooks.
    """
    if "torch" in sys.modules:
        raise RuntimeError("load the guard before torch is imported")
    ctypes.CDLL(str(build()), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
