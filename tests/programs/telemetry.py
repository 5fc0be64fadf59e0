"""Prints whether telemetry of the hub's client is off and usage statistics of Ray are on, once raylm is imported."""

from __future__ import annotations

import importlib

for module in ("raylm.runner", "raylm.tuning.prepare", "raylm.tuning.tuner"):
    importlib.import_module(module)

constants = importlib.import_module("huggingface_hub.constants")
usage = importlib.import_module("ray._common.usage.usage_lib")
print(constants.HF_HUB_DISABLE_TELEMETRY, usage.usage_stats_enabled())
