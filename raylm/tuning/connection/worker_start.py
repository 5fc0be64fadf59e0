"""Import of what trials need, in the first processes that Ray starts: each that finds a claim takes it.

Importing this module elsewhere does nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from pathlib import Path

from raylm.imports import pause_garbage_collection

CLAIMS_VARIABLE = "RAYLM_PRELOAD_CLAIMS"
"""Variable with the folder of the claims: files of which each process that imports the modules removes one."""
TRIAL_MODULES = (
    "raylm.tuning.tuner",
    "raylm.tuning.trainable",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
)
"""Modules that a trial of a GPT-2 imports until its first step."""


def take_claim(folder: Path) -> bool:
    """Remove a file of a folder; return False if there is none that another process has not removed."""
    with contextlib.suppress(FileNotFoundError):  # of the folder, after the end of the launch's start
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                file.unlink()
                return True
    return False


def import_trial_modules() -> None:
    """Import the modules; an error is left to the trial, which reports it."""
    with contextlib.suppress(Exception), pause_garbage_collection():
        for name in TRIAL_MODULES:
            importlib.import_module(name)
    gc.freeze()  # later collections do not search the modules, a third of a second each


if (claims := os.environ.get(CLAIMS_VARIABLE)) and take_claim(Path(claims)):
    import_trial_modules()
