"""Options of the experiment trackers, from flags and environment. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import urllib.parse
from dataclasses import dataclass

from raylm.errors import UserError
from raylm.monitor.trackers import wandb_settings

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that keep the hub's client from sending anything, which trackio's own client does not read."""


@dataclass(frozen=True)
class TrackerOptions:
    """Trackers of a launch. TensorBoard's files are always written."""

    wandb: str
    """`online`, `offline` or `disabled`."""
    mlflow: str | None
    """URI or folder; None: disabled."""
    trackio: str | None
    """Project; None: disabled."""
    notes: tuple[str, ...] = ()
    """Lines for the user: trackers that are off or offline, each with the setting that says so."""


def resolve(wandb: str | None = None, mlflow: str | None = None, trackio: str | None = None) -> TrackerOptions:
    """Return the trackers of a launch.

    Args:
        wandb: mode; None: the one of `$WANDB_MODE` or W&B's settings files, else `online` if this machine is logged in.
        mlflow: URI or folder of MLflow.
        trackio: project of trackio.

    Raises:
        UserError: if a value is invalid, a package is not installed, there is no login, or W&B is to be online although
            a setting turns it off.
    """
    mode, notes = _resolve_wandb(wandb)
    for module, flag, value, package in (
        ("mlflow", "--mlflow", mlflow, "mlflow-skinny"),
        ("trackio", "--trackio", trackio, "trackio"),
    ):
        if value is not None and not _is_installed(module):
            raise UserError(f"{flag}: {module} is not installed; expected the package {package}: pip install {package}")
    if mlflow and "@" in urllib.parse.urlsplit(mlflow).netloc:
        raise UserError(
            "--mlflow: the URI contains a password, which would appear in logs; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if trackio is not None and (offline := find_offline_variable()) and os.environ.get("TRACKIO_SPACE_ID"):
        notes.append(f"trackio: offline because of {offline}; runs are not sent to the Space of TRACKIO_SPACE_ID")
    return TrackerOptions(mode, mlflow, trackio, tuple(notes))


def find_wandb_opt_out(flag: str | None) -> tuple[str, str] | None:
    """Return the mode that a setting of this machine turns W&B to and a note on it; None if it may be online.

    Args:
        flag: mode given to the command. `offline` and `disabled` take precedence over settings: nothing is sent.

    Raises:
        UserError: if a mode is invalid, or the flag is `online` although a setting turns W&B off.
    """
    given = wandb_settings.parse_flag(flag) if flag else None
    if given in ("offline", "disabled"):
        return None
    mode, setting = wandb_settings.find_mode()
    if mode not in ("offline", "disabled"):
        return None
    if given:
        raise UserError(f"--wandb online: W&B is {mode} because of {setting}; remove the flag or that setting")
    return mode, f"wandb: {mode} because of {setting}"


def _resolve_wandb(flag: str | None) -> tuple[str, list[str]]:
    """Return the mode of W&B and notes."""
    if opt_out := find_wandb_opt_out(flag):
        return opt_out[0], [opt_out[1]]
    if flag in ("offline", "disabled"):
        return flag, []
    has_login = wandb_settings.has_login()
    is_variable = wandb_settings.find_mode()[1].startswith("WANDB_MODE=")
    if (flag or is_variable) and not has_login:
        raise UserError(
            f"{'--wandb' if flag else 'WANDB_MODE'}=online: no API key for {wandb_settings.find_host()}; run "
            "`wandb login`, set WANDB_API_KEY, or use --wandb offline"
        )
    return "online" if has_login else "disabled", []


def find_offline_variable() -> str | None:
    """Return the variable that keeps the hub's client offline, with its value, or None."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE"):  # huggingface_hub/constants.py
            return f"{name}={os.environ[name]}"
    return None


def _is_installed(package: str) -> bool:
    """Return whether a package is installed. A folder of its name without modules, such as its data, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
