"""Ray Tune sweeps that fine-tune GPT-2 and end in one table of losses."""

from __future__ import annotations

from raylm.config import Resources, Sweep, TrialConfig
from raylm.errors import SweepError, UserError, WorkError

__version__ = "0.1.0"

__all__ = ["Resources", "Sweep", "SweepError", "TrialConfig", "UserError", "WorkError", "__version__"]
