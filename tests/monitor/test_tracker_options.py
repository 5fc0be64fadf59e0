"""Options of experiment trackers, from flags, environment and wandb's login."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tracked_trials import API_KEY
from tracked_trials import tracker_home as tracker_home
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.errors import UserError
from raylm.monitor.trackers.options import resolve
from raylm.monitor.trackers.wandb_settings import has_login


def test_wandb_is_online_if_it_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve().wandb == "disabled"
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {API_KEY}\n")
    assert resolve().wandb == "online"
    assert resolve("offline").wandb == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve().wandb == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    assert resolve().wandb == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve().wandb == "offline"
    assert resolve("disabled").wandb == "disabled"


def test_login_to_another_host_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    (tmp_path / "netrc").write_text(f"machine wandb.example.org\n  login user\n  password {API_KEY}\n")
    assert has_login()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wandb": "ofline"}, "--wandb: got 'ofline'; expected one of online, offline, disabled; did you mean"),
        ({"wandb": "online"}, "no API key for api.wandb.ai; run `wandb login`"),
        ({"mlflow": "https://me:secret@mlflow.example.org"}, "set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_invalid_options_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(**arguments)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_tracker_that_is_not_installed_is_refused_before_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    sweep = Path(__file__).parents[2] / "sweeps" / "quickstart.py"
    result = CliRunner().invoke(app, ["run", str(sweep), "--mlflow", "x"])
    assert result.exit_code == 2 and "pip install mlflow-skinny" in result.stderr
