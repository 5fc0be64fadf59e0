"""Environment of the trackers' processes. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from raylm.monitor.trackers.options import find_offline_variable

RUN_VARIABLES = frozenset(
    {
        *(f"WANDB_{name}" for name in ("RUN_ID", "RUN_NAME", "NAME", "RUN_GROUP", "RUN_DIR", "RUN_STORAGE_ID")),
        *(f"WANDB_{name}" for name in ("RESUME", "RESUME_FROM", "FORK_FROM", "DIR", "ROOT_DIR", "SERVICE", "MODE")),
        *(f"WANDB_{name}" for name in ("SWEEP_ID", "SWEEP_PARAM_PATH", "CONFIG", "CONFIG_PATHS", "PROGRAM", "ARGS")),
        *(f"WANDB_{name}" for name in ("LAUNCH", "LAUNCH_CONFIG_PATH", "DISABLED", "MAGIC", "INITED", "DESCRIPTION")),
        *(f"MLFLOW_{name}" for name in ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "RUN_CONTEXT")),
        "MLFLOW_ENABLE_ASYNC_LOGGING",  # the process would end before the metrics are sent
        "PYTHONWARNINGS",  # with "error", clients fail at the deprecations of packages
    }
)
"""Variables that name one run, its sweep or its service, as in an agent's process, where trials have runs of their own;
and two that make clients fail."""
SPACE_VARIABLES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")
"""Destinations of trackio if it has a Space; the server's address is unused then."""
FIXED_VARIABLES = {
    "PYTHONSAFEPATH": "1",  # a file such as queue.py in the working folder would replace Python's
    "WANDB_SAGEMAKER_DISABLE": "true",  # on SageMaker, W&B gives all runs of a job one id
}
"""Settings of all trackers' processes."""
TELEMETRY_VARIABLES = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""Settings that keep clients from reporting on themselves; those of the user take precedence."""


def tracker_environment() -> dict[str, str]:
    """Return the environment of a tracker's process: this one's, without what names a single run."""
    env = {name: value for name, value in os.environ.items() if not _names_a_run(name)}
    if find_offline_variable() and "TRACKIO_SPACE_ID" in env:
        env = {name: value for name, value in env.items() if name not in SPACE_VARIABLES}
    return {**TELEMETRY_VARIABLES, **env, **FIXED_VARIABLES, **_module_path(env)}


def _names_a_run(name: str) -> bool:
    part = name.removeprefix("WANDB_CONFIG_")  # parts of a launch's config: WANDB_CONFIG_0, ...
    return name in RUN_VARIABLES or (part != name and part.isdigit())


def _module_path(env: Mapping[str, str]) -> dict[str, str]:
    """Return PYTHONPATH without the working folder, unless raylm itself is in it."""
    root = str(Path(__file__).absolute().parents[3])
    entries = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    entries = [entry for entry in entries if not _is_working_folder(entry)]
    if Path(root).name not in ("site-packages", "dist-packages") and root not in entries:
        entries.append(root)
    return {"PYTHONPATH": os.pathsep.join(entries)}


def _is_working_folder(entry: str) -> bool:
    try:
        return Path(entry).samefile(".")
    except OSError:  # either is gone
        return False
