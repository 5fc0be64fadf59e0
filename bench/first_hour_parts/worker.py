"""Process that measures: reads cases from standard input, writes an event for each to standard output, as JSON.

The first event describes the environment, or the reason for which there is no GPU. It says so if the GPU has failed in
this process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from first_hour_parts.plan import Case, Part, find_part
from first_hour_parts.setup import REPOSITORY, NotMeasuredError, Setup
from raylm.errors import is_out_of_memory
from raylm.planning.devices import cpu_name
from raylm.training.device import inspect_gpus

MESSAGE_LENGTH = 300
PACKAGES = ("transformers", "triton", "liger-kernel", "ray")


def describe(setup: Setup) -> dict[str, Any]:
    """Return card, driver, versions, and a hash of raylm's training code; None for what there is not."""
    environment: dict[str, Any] = {"device": cpu_name(), "tiny": True if setup.tiny else None}
    environment["simulated"] = True if setup.is_simulated else None
    if setup.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        environment |= {
            "device": properties.name,
            "GiB": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver_version(),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    versions = {name: _version(name) for name in PACKAGES}
    host = {"CPU": cpu_name(), "threads": torch.get_num_threads(), "Python": platform.python_version()}
    return {**environment, "torch": torch.__version__, **versions, **host, "code": _code_hash()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.split("\n")[0].strip() or None


def _code_hash() -> str:
    """Return a hash of the code that is measured: results of other code are kept apart."""
    digest = hashlib.sha256()
    for file in sorted([*(REPOSITORY / "raylm" / "training").rglob("*.py"), *(REPOSITORY / "raylm").glob("*.py")]):
        digest.update(f"{file.relative_to(REPOSITORY)} ".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def measure(setup: Setup, part: Part, case: Case) -> dict[str, Any]:
    """Return status, and values or message, of a case, and the time it took; `broken` after a failure of the GPU."""
    started = time.perf_counter()
    result: dict[str, Any]
    try:
        setup.clear()
        module, function = case.function.split(".")
        values = getattr(importlib.import_module(f"first_hour_parts.{module}"), function)(setup, **case.arguments)
        result = {"status": "done", "values": values}
    except NotMeasuredError as error:
        result = {"status": "skipped", "message": str(error)}
    except ModuleNotFoundError as error:
        result = {"status": "skipped", "message": f"needs the package {error.name}"}
    except Exception as error:  # whatever torch, transformers, Triton or the driver raise: recorded, and the next one
        traceback.print_exc()
        text = " ".join(str(error).split())[:MESSAGE_LENGTH]
        result = {"status": "failed", "message": f"{type(error).__name__}: {text}", "broken": _is_broken(setup, error)}
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    return {**result, "part": part.name, "case": case.name, "seconds": round(time.perf_counter() - started, 2)}


def _is_broken(setup: Setup, error: Exception) -> bool:
    """Return whether an error leaves the GPU unusable for this process, as an illegal access in a kernel does."""
    if setup.device != "cuda" or is_out_of_memory(error):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main() -> None:
    """Describe the environment, then measure the cases of standard input, a line each."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no event
    options = json.loads(sys.argv[1])
    setup = Setup(options["device"], options["tiny"])
    if setup.device == "cuda" and (problem := inspect_gpus().problem):
        print(json.dumps({"problem": problem}), file=events)
        return
    setup.prepare()
    print(json.dumps({"environment": describe(setup)}), file=events)
    for line in sys.stdin:
        part_name, case_name = json.loads(line)
        part = find_part(part_name)
        case = next(case for case in part.cases if case.name == case_name)
        print(json.dumps(measure(setup, part, case)), file=events)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
    main()
