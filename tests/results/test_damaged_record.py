"""Damaged sweep.json: every command ends with the same message and exit code 2, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylm import Sweep, UserError, load_results, run
from raylm.cli.app import app
from raylm.config.trial import TrialConfig
from raylm.results import sweep_record
from raylm.results.folder import find_results
from raylm.results.storage import Folder
from raylm.results.sweep_record import DataRecord, LaunchRecord, ModelRecord, SweepRecord

TRIAL = TrialConfig(seed=1)
MESSAGE = "is damaged"


def edited(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Return an edit that replaces top-level values."""
    return lambda content: {**content, **changes}


def launch_edited(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Return an edit that replaces values of the launch."""
    return lambda content: {**content, "launches": [{**content["launches"][0], **changes}]}


def without(*names: str) -> Callable[[dict[str, Any]], Any]:
    """Return an edit that removes top-level values."""
    return lambda content: {name: value for name, value in content.items() if name not in names}


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not an object": lambda content: [content],
    "null": lambda content: None,
    "no version": without("version"),
    "version is text": edited(version="1"),
    "no name": without("name"),
    "name is a number": edited(name=3),
    "no trials": without("trials"),
    "trial is a number": edited(trials=[3]),
    "trial has no config": edited(trials=[{"id": "x"}]),
    "config has a value of another type": edited(trials=[{"config": {"context_length": "long"}}]),
    "run name leaves the folder": edited(trials=[{"config": {"dataset": 7}}]),
    "lag is text": edited(lag="4"),
    "launches is an object": edited(launches={}),
    "launches is a number": edited(launches=1),
    "launch is a number": edited(launches=[1]),
    "launch has no number": edited(launches=[{}]),
    "launch number is text": launch_edited(number="1"),
    "data is a number": launch_edited(data=3),
    "data has no dataset": launch_edited(data=[{"model": "gpt2"}]),
    "data is a list of numbers": launch_edited(data=[1]),
    "fingerprint is a number": launch_edited(data=[{"dataset": "imdb", "model": "gpt2", "fingerprint": 1}]),
    "models is null": launch_edited(models=None),
    "model has no name": launch_edited(models=[{"pretrained": True}]),
    "precision is a list": launch_edited(precision=["float32"]),
    "hardware is text": launch_edited(hardware="T4"),
    "versions is a list": launch_edited(versions=[]),
    "slot has no card": launch_edited(slot={"share": 1.0}),
    "slot is on nothing": launch_edited(
        slot={
            "card": {"name": "T4", "bfloat16": None, "float32": 8.1, "gb_per_s": 320, "gib": 14.6},
            "share": 0,
            "at_a_time": 1,
            "precision": "float32",
        }
    ),
}
COMMANDS = {
    "run": ["run", "{sweep}", "--storage", "{storage}"],
    "plan": ["plan", "{sweep}", "--storage", "{storage}", "--gpu", "a100"],
    "report": ["report", "{results}"],
    "report --format html": ["report", "{results}", "--format", "html"],
    "report --json": ["report", "{results}", "--json"],
    "evaluate": ["evaluate", "{results}", "--context-lengths", "64"],
    "export": ["export", "{results}", "{storage}/model"],
    "status": ["status", "{results}"],
    "logs": ["logs", "{results}", "pydocs"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a results folder with an undamaged record."""
    launch = LaunchRecord(
        1,
        models=[ModelRecord("gpt2-nano", pretrained=True)],
        data=[DataRecord("pydocs", "gpt2-nano", fingerprint="bc05")],
    )
    folder = tmp_path / "runs" / "s"
    sweep_record.write(Folder(folder), SweepRecord("s", [TRIAL], launches=[launch]))
    return folder


def damage(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / sweep_record.RECORD_FILE
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def test_undamaged_record_is_loaded(folder: Path) -> None:
    damage(folder, lambda content: content)
    assert [row.config for row in load_results(folder).rows] == [TRIAL]


@pytest.mark.parametrize("name", DAMAGES)
def test_python_functions_raise_one_error(folder: Path, name: str) -> None:
    sweep = Sweep(name="s", space={"seed": 1})
    damage(folder, DAMAGES[name])
    content = (folder / sweep_record.RECORD_FILE).read_text()
    messages = set()
    for function in (
        lambda: load_results(folder),
        lambda: find_results(sweep, Folder(folder)),
        lambda: run(sweep, storage=str(folder.parent)),
    ):
        with pytest.raises(UserError, match=MESSAGE) as caught:
            function()
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"{folder / sweep_record.RECORD_FILE} is damaged (") and "\n" not in message
    assert [path.name for path in folder.iterdir()] == [sweep_record.RECORD_FILE]
    assert (folder / sweep_record.RECORD_FILE).read_text() == content


@pytest.mark.parametrize("text", ["", "{", "3", "\0", "{}", '{"version": 1}', '{"version": 1, "trials": [{}]}'])
def test_text_that_is_not_a_record_is_damaged(folder: Path, text: str) -> None:
    (folder / sweep_record.RECORD_FILE).write_text(text)
    with pytest.raises(UserError, match=MESSAGE):
        load_results(folder)


@pytest.mark.parametrize("name", ["no name", "launch has no number", "data has no dataset", "models is null"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_one_message(folder: Path, command: str, name: str) -> None:
    damage(folder, DAMAGES[name])
    sweep_file = folder.parent / "s.py"
    sweep_file.write_text('from raylm import Sweep\nsweep = Sweep(name="s", space={"seed": 1})\n')
    values = {"sweep": str(sweep_file), "storage": str(folder.parent), "results": str(folder)}
    result = CliRunner().invoke(app, [argument.format(**values) for argument in COMMANDS[command]])
    output = " ".join((result.output + result.stderr).split())
    assert result.exit_code == 2, output
    assert MESSAGE in output and "move it away and run the sweep again" in output and "Traceback" not in output


@pytest.mark.parametrize("version", [0, 2, 99])
def test_record_of_another_version_names_the_version(folder: Path, version: int) -> None:
    damage(folder, edited(version=version))
    with pytest.raises(
        UserError, match=f"has version {version}, but this raylm reads version 1; use the raylm that wrote"
    ):
        load_results(folder)
