"""Build of the fake GPU, and the command that runs others on it.

    python tests/gpu/fake_gpu.py COMMAND [ARGUMENT ...]

runs a command under torch's CUDA build in this environment with the GPU that torch finds, or else with the fake one
(`RAYLM_GPU=fake` takes the fake one in any case, `RAYLM_GPU=real` never). `FAKE_GPU_COUNT`, `FAKE_GPU_GIB`,
`FAKE_GPU_CAPABILITY`, `FAKE_GPU_NAME` and `FAKE_GPU_CONTEXT_MIB` describe it (fake/options.h).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).with_name("fake")
LIBRARY = "libfakegpu.so"
LIBRARY_VARIABLE = "RAYLM_FAKE_GPU"
"""Variable with the path of the fake GPU's library, in the processes that run on it."""
DEVICE_VARIABLE = "RAYLM_TESTS_GPU"
"""Variable that is `real` or `fake` in processes that `main` starts."""
PARTS = {
    LIBRARY: ("state.cpp", "runtime.cpp", "streams.cpp", "kernels.cpp", "nccl.cpp"),
    "lib/libcuda.so.1": ("driver.cpp",),
    "lib/libnvidia-ml.so.1": ("nvml.cpp",),
}
TORCH_LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")


def build(out: Path) -> Path:
    """Compile the fake GPU for the torch of this environment; return its folder, made once per version of both.

    Args:
        out: parent of the folder.

    Raises:
        SystemExit: if this torch is no CUDA build, or there is no compiler.
    """
    site = Path(sysconfig.get_paths()["purelib"])
    toolkits = list(site.glob("nvidia/cu*/include/cuda.h"))
    if not toolkits or not shutil.which("g++"):
        sys.exit("the fake GPU needs g++ and torch's CUDA build (a wheel of PyPI for Linux): run scripts/test-gpu")
    include = toolkits[0].parent
    content = b"".join(file.read_bytes() for file in [Path(__file__), *sorted(SOURCES.glob("*.*"))])
    folder = out / f"fake-gpu-{hashlib.sha256(content + str(include).encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(f".{os.getpid()}")
    (partial / "lib").mkdir(parents=True)
    needed = {
        LIBRARY: _undefined_functions(site / "torch" / "lib" / name for name in TORCH_LIBRARIES),
        "lib/libcuda.so.1": _driver_functions(include / "cuda.h"),
        "lib/libnvidia-ml.so.1": set(),
    }
    for name, sources in PARTS.items():
        library, stubs = partial / name, partial / f"{Path(name).stem}-stubs.cpp"
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{SOURCES}", f"-I{SOURCES / 'include'}"]
        command += [f"-I{include}", *(str(SOURCES / source) for source in sources), "-o", str(library), "-ldl"]
        command += [f"-Wl,-soname,{library.name}"]
        if name != LIBRARY:  # after the sources that need it
            command += [f"-L{partial}", "-lfakegpu", "-Wl,-rpath,$ORIGIN/.."]
        subprocess.run(command, check=True)
        if missing := needed[name] - _defined_functions(library):
            stubs.write_text('#include "fake.h"\n' + "\n".join(map(_stub, sorted(missing))))
            subprocess.run([*command, str(stubs)], check=True)
    (partial / "lib" / "libcuda.so").symlink_to("libcuda.so.1")  # by which Triton links its launcher
    partial.rename(folder)
    return folder


def _stub(function: str) -> str:
    """Return the source of a function that counts its calls and returns 0, for success."""
    return (
        f'API int stub_{function}() asm("{function}");\n'
        f'int stub_{function}() {{ static long* const n = fake::counter("stub: {function}"); ++*n; return 0; }}'
    )


def _undefined_functions(libraries: Iterable[Path]) -> set[str]:
    """Return the functions of CUDA's runtime, cuBLAS and NCCL that libraries need."""
    lines = subprocess.check_output(["nm", "-D", "--undefined-only", *filter(Path.exists, libraries)], text=True)
    return set(re.findall(r" U (_*(?:cuda|cublas|nccl)[A-Z]\w*)(?:@libcu(?:dart|blas|blasLt)\.so.*)?$", lines, re.M))


def _defined_functions(library: Path) -> set[str]:
    lines = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    return set(re.findall(r" T (\w+)$", lines, re.M))


def _driver_functions(header: Path) -> set[str]:
    text = header.read_text()
    versions = re.findall(r"#define cu\w+\s+(cu\w+_v\d)\b", text)
    return {*re.findall(r"CUresult CUDAAPI (cu\w+)\(", text), *versions}


def environment(folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that runs on the fake GPU in a folder from `build`."""
    libraries = f"{folder / 'lib'}:{base.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    return {
        **base,
        LIBRARY_VARIABLE: str(folder / LIBRARY),
        "LD_PRELOAD": f"{folder / LIBRARY} {folder / 'lib' / 'libcuda.so.1'}",
        "LD_LIBRARY_PATH": libraries,
        "TRITON_LIBCUDA_PATH": str(folder / "lib"),
    }


def has_gpu() -> bool:
    """Return whether torch can use a GPU of this machine."""
    check = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=False).returncode == 0


def main(command: Sequence[str]) -> None:
    """Replace this process by a command on a GPU."""
    choice = os.environ.get("RAYLM_GPU", "")
    if choice not in ("", "fake", "real"):
        sys.exit(
            f"RAYLM_GPU is {choice!r}; expected fake, real or nothing, which takes the real one where there is one"
        )
    variables = dict(os.environ)
    device = choice or ("real" if has_gpu() else "fake")
    if device == "fake":
        variables = environment(build(Path(sys.prefix)), variables)
    print(f"on the {device} GPU", file=sys.stderr)
    os.execvpe(command[0], list(command), {**variables, DEVICE_VARIABLE: device})


if __name__ == "__main__":
    main(sys.argv[1:])
