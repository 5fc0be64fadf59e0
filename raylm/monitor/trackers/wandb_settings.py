"""Mode, server and login of Weights & Biases, from its variables and settings files. Standard library only."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from raylm.errors import UserError, format_suggestion, safe_repr

MODES = ("online", "offline", "disabled")
"""Modes that raylm offers."""
VARIABLE_MODES = {**dict(zip(MODES, MODES, strict=True)), "dryrun": "offline", "run": "online", "shared": "online"}
"""raylm's mode by the values that W&B takes (`mode` in wandb/sdk/wandb_settings.py): it runs `dryrun` offline."""
FALSE_VALUES = ("", "0", "false", "no", "off")


def find_mode() -> tuple[str, str]:
    """Return the mode that this user has set and the setting's name; two empty strings if none is set.

    Settings by precedence, as W&B has them: variables, the settings file of the working folder, that of the user.
    `WANDB_DISABLED`, of earlier versions and of Transformers, turns W&B off whatever the others are.

    Raises:
        UserError: if a mode is invalid.
    """
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in FALSE_VALUES:
        return "disabled", f"WANDB_DISABLED={os.environ['WANDB_DISABLED']}"
    if value := os.environ.get("WANDB_MODE", "").strip():
        return _parse_mode(value, "WANDB_MODE"), f"WANDB_MODE={value}"
    for file in reversed(_settings_files()):
        if value := _read_settings(file).get("mode", "").strip():
            return _parse_mode(value, f"mode in {file}"), f"`mode = {value}` in {file}"
    return "", ""


def _parse_mode(value: str, source: str) -> str:
    mode = VARIABLE_MODES.get(value.lower())
    if mode is None:
        hint = format_suggestion(value, MODES)
        raise UserError(f"{source}: got {safe_repr(value)}; expected one of {', '.join(MODES)}{hint}")
    return mode


def parse_flag(value: str) -> str:
    """Return the mode of `--wandb`.

    Raises:
        UserError: if it is invalid.
    """
    if value not in MODES:
        hint = format_suggestion(value, MODES)
        raise UserError(f"--wandb: got {safe_repr(value)}; expected one of {', '.join(MODES)}{hint}")
    return value


def has_login() -> bool:
    """Return whether W&B has a key for its server, without a request and without importing wandb (seconds)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (_expand(name) for name in files if name):
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if find_host() in netrc.netrc(file).hosts:
                return True
    return False


def find_host() -> str:
    """Return the host of W&B's server: of `$WANDB_BASE_URL`, else of the settings files, else W&B's own."""
    settings: dict[str, str] = {}
    for file in _settings_files():
        settings |= _read_settings(file)
    url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    return urllib.parse.urlsplit(url).hostname or url


def _settings_files() -> list[Path]:
    """Return the settings files: the user's, which `wandb login` writes, and those of the working folder.

    `wandb offline` and `wandb disabled` write the one of the working folder, or of `$WANDB_DIR` if it is set.
    """
    folders = [Path(), *([Path(os.environ["WANDB_DIR"])] if os.environ.get("WANDB_DIR") else [])]
    local = [folder / name / "settings" for folder in folders for name in ("wandb", ".wandb")]
    return [_expand(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb") / "settings", *local]


def _read_settings(file: Path) -> Mapping[str, str]:
    """Return the settings of a file; none if it cannot be read, as for W&B."""
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read(_expand(str(file)))
    return dict(parser["default"]) if parser.has_section("default") else {}


def _expand(path: str) -> Path:
    """Return a path with `~` replaced, unless this user has no home."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
