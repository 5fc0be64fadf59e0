"""Ctrl-C, once and twice: trials are saved, no process is left, and the sweep ends like an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Start, Uninterrupted, assert_same, wait_until_training
from oracle import wait_for

from raylm.results import manifest

pytest_plugins = ["commands"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000)]


def find_saved_steps(folder: Path) -> list[tuple[int, int]]:
    """Return steps and total steps of all checkpoints in a results folder."""
    contents = [content for path in folder.glob("launch-*/*/checkpoint_*") if (content := manifest.verify(path))]
    return [(content.progress.step, content.progress.total_steps) for content in contents]


@pytest.mark.nightly
def test_closed_terminal_saves_the_trials(grid: Uninterrupted, start: Start, ray_address: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "chaos"
    command = start(grid[0], "--address", "local")
    wait_until_training(command)
    command.refresh_processes()
    command.hang_up()
    assert command.wait() == 130
    wait_for(lambda: not command.living_processes(), 60)
    assert any(0 < step < total for step, total in find_saved_steps(folder))
    assert (folder / "results.csv").exists() and (folder / "report.html").exists()
    assert start(grid[0], "--address", ray_address).wait() == 0
    assert_same(folder, grid[1])


def test_ctrl_c_saves_the_trials_and_leaves_no_process(
    grid: Uninterrupted, start: Start, ray_address: str, tmp_path: Path
) -> None:
    """Two commands with a Ray of their own, interrupted once and twice; a third one runs the sweep to its end."""
    folder = tmp_path / "runs" / "chaos"
    command = start(grid[0], "--address", "local")
    wait_until_training(command)
    command.refresh_processes()
    command.interrupt()
    assert command.wait() == 130
    wait_for(lambda: not command.living_processes(), 60)

    assert "val loss" in command.read_output()
    assert "run the same command to resume" in command.read_output()
    saved = [content for path in folder.glob("launch-*/*/checkpoint_*") if (content := manifest.verify(path))]
    steps = [(content.progress.step, content.progress.total_steps) for content in saved]
    assert any(0 < step < total for step, total in steps), steps
    assert not any(content.progress.evaluations for content in saved)

    command = start(grid[0], "--address", "local")
    wait_until_training(command)
    command.refresh_processes()
    command.interrupt()
    command.wait_for(lambda: "Ctrl-C again to exit at once" in command.read_output(), between=0.005)
    command.interrupt()
    assert command.wait() == 130
    wait_for(lambda: not command.living_processes(), 60)

    assert start(grid[0], "--address", ray_address).wait() == 0
    assert_same(folder, grid[1])
