"""The sweep of long_grid.py with a time budget in which it does not end."""

from __future__ import annotations

from dataclasses import replace

import long_grid

sweep = replace(long_grid.sweep, time_budget_hours=8 / 3600)
