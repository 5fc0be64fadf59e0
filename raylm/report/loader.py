"""Loader of the modules that draw a report, while trials still run."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.events import TrialListener
from raylm.imports import pause_garbage_collection

REPORT_MODULE = "raylm.report.html"
"""Module that draws the report; its import takes most of a second, for matplotlib."""


class ReportLoader(TrialListener):
    """Listener that imports what draws the report while trials run: in a thread, at the first evaluation."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=_load, daemon=True)

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Start the import at the first call."""
        if self._thread.ident is None:
            self._thread.start()


def _load() -> None:
    with pause_garbage_collection():
        importlib.import_module(REPORT_MODULE)
