"""Ray Tune sweeps that fine-tune GPT-2 and end in one table of losses."""

from __future__ import annotations

from raylm import shadowing

shadowing.exit_if_shadowed()  # before anything is imported that may be shadowed

import importlib
from typing import TYPE_CHECKING, Any

from raylm.config.sweep import Sweep
from raylm.config.sweep_file import load_sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import SweepError, UserError, WorkError

if TYPE_CHECKING:
    from raylm.report.analysis import Results, load_results
    from raylm.runner import RunResult, run

__version__ = "0.1.0"

__all__ = [
    "Resources",
    "Results",
    "RunResult",
    "Sweep",
    "SweepError",
    "TrialConfig",
    "UserError",
    "WorkError",
    "__version__",
    "load_results",
    "load_sweep",
    "run",
]

_LAZY_IMPORTS = {
    "Results": "raylm.report.analysis",
    "RunResult": "raylm.runner",
    "load_results": "raylm.report.analysis",
    "run": "raylm.runner",
}
"""Modules of names that need more than the standard library."""


def __getattr__(name: str) -> Any:
    """Import a lazy name on first access, so that `import raylm` takes milliseconds."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    """Return all names, including the lazy ones."""
    return sorted({*globals(), *__all__})
