"""Options of the experiment trackers, from flags and environment. Standard library only."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import netrc
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from raylm.errors import UserError, format_suggestion, safe_repr

WANDB_MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class TrackerOptions:
    """Trackers of a launch. TensorBoard's files are always written."""

    wandb: str
    """`online`, `offline` or `disabled`."""
    mlflow: str | None
    """URI or folder; None: disabled."""
    trackio: str | None
    """Project; None: disabled."""


def resolve(wandb: str | None = None, mlflow: str | None = None, trackio: str | None = None) -> TrackerOptions:
    """Return the trackers of a launch.

    Args:
        wandb: mode; None: `$WANDB_MODE`, else `online` if this machine is logged in.
        mlflow: URI or folder of MLflow.
        trackio: project of trackio.

    Raises:
        UserError: if a value is invalid, a package is not installed, or there is no login.
    """
    mode, source = (wandb, "--wandb") if wandb else (os.environ.get("WANDB_MODE"), "WANDB_MODE")
    if mode and mode not in WANDB_MODES:
        hint = format_suggestion(mode, WANDB_MODES)
        raise UserError(f"{source}: got {safe_repr(mode)}; expected one of {', '.join(WANDB_MODES)}{hint}")
    if mode == "online" and not has_wandb_login():
        raise UserError(
            f"{source}=online: no API key for {_wandb_host()}; run `wandb login`, set WANDB_API_KEY, "
            "or use --wandb offline"
        )
    for package, flag, value in (("mlflow", "--mlflow", mlflow), ("trackio", "--trackio", trackio)):
        if value is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"{flag}: {package} is not installed; pip install 'raylm[{package}]'")
    if mlflow and "@" in urllib.parse.urlsplit(mlflow).netloc:
        raise UserError(
            "--mlflow: the URI contains a password, which would appear in logs; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return TrackerOptions(mode or ("online" if has_wandb_login() else "disabled"), mlflow, trackio)


def has_wandb_login() -> bool:
    """Return whether wandb has a key for its server, without a request and without importing wandb (seconds)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if _wandb_host() in netrc.netrc(file).hosts:
                return True
    return False


def _wandb_host() -> str:
    """Return the host of wandb's server: of `$WANDB_BASE_URL`, else of `wandb login --host`, else wandb's own."""
    url = os.environ.get("WANDB_BASE_URL")
    if not url:
        folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
        settings = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            settings.read(Path(folder).expanduser() / "settings")
        url = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return urllib.parse.urlsplit(url).hostname or url
