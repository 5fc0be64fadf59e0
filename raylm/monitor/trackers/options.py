"""Which experiment trackers are told of a launch, by its flags and the environment. Standard library only."""

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
    """The trackers of a launch, besides TensorBoard's files."""

    wandb: str
    """`online`, `offline` or `disabled`."""
    mlflow: str | None
    """A URI, or a folder; None: not tracked there."""
    trackio: str | None
    """A project; None: not tracked there."""


def resolve(wandb: str | None = None, mlflow: str | None = None, trackio: str | None = None) -> TrackerOptions:
    """The trackers that are asked for, by the command or the environment.

    Args:
        wandb: a mode; None: `$WANDB_MODE`, else online where this machine is logged in.

    Raises:
        UserError: if one cannot be had.
    """
    asked, by = (wandb, "--wandb") if wandb else (os.environ.get("WANDB_MODE"), "WANDB_MODE")
    if asked and asked not in WANDB_MODES:
        hint = format_suggestion(asked, WANDB_MODES)
        raise UserError(f"{by}: got {safe_repr(asked)}; expected one of {', '.join(WANDB_MODES)}{hint}")
    if asked == "online" and not has_wandb_login():
        raise UserError(
            f"{by}=online: no key for {_wandb_host()} is known; run `wandb login`, set WANDB_API_KEY, "
            "or take --wandb offline"
        )
    for package, flag, value in (("mlflow", "--mlflow", mlflow), ("trackio", "--trackio", trackio)):
        if value is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"{flag}: {package} is not installed; pip install 'raylm[{package}]'")
    if mlflow and "@" in urllib.parse.urlsplit(mlflow).netloc:
        raise UserError(
            "--mlflow: the URI has a password in it, which would stand in logs; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return TrackerOptions(asked or ("online" if has_wandb_login() else "disabled"), mlflow, trackio)


def has_wandb_login() -> bool:
    """Whether wandb has a key for its server, as far as can be seen without asking it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if _wandb_host() in netrc.netrc(file).hosts:
                return True
    return False


def _wandb_host() -> str:
    """The server that wandb goes to: of the environment, else of `wandb login --host`, else wandb's own."""
    url = os.environ.get("WANDB_BASE_URL")
    if not url:
        folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
        settings = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            settings.read(Path(folder).expanduser() / "settings")
        url = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return urllib.parse.urlsplit(url).hostname or url
