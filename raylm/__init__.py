"""Ray Tune sweeps that fine-tune GPT-2 and end in one table of losses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import SweepError, UserError, WorkError

if TYPE_CHECKING:
    from raylm.report.analysis import load_results
    from raylm.runner import run

__version__ = "0.1.0"

__all__ = [
    "Resources",
    "Sweep",
    "SweepError",
    "TrialConfig",
    "UserError",
    "WorkError",
    "__version__",
    "load_results",
    "run",
]

_LAZY_IMPORTS = {"load_results": "raylm.report.analysis", "run": "raylm.runner"}
"""Names whose modules take more than the standard library."""


def __getattr__(name: str) -> Any:
    """Imports what takes its time when it is asked for, so that `import raylm` takes none."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    """All names, also before they were asked for."""
    return sorted({*globals(), *__all__})
