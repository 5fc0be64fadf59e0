"""Ctrl-C, once and twice: trials are saved, no process is left, and the sweep ends like an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command, Start, Uninterrupted, assert_same, wait_until_training
from oracle import wait_for

from raylm.results import manifest
from raylm.results.progress import Progress

pytest_plugins = ["commands"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000)]


def find_saved_progress(folder: Path) -> list[Progress]:
    """Return the progress in all checkpoints of a results folder."""
    paths = folder.glob("launch-*/*/checkpoint_*")
    return [content.progress for path in paths if (content := manifest.verify(path))]


def end_while_training(start: Start, grid: Uninterrupted, end: Callable[[Command], None]) -> Command:
    """End a command with a Ray of its own in the middle of an epoch, and expect that it leaves no process."""
    command = start(grid[0], "--address", "local")
    wait_until_training(command)
    command.refresh_processes()
    end(command)
    assert command.wait() == 130
    wait_for(lambda: not command.living_processes(), 60)
    return command


@pytest.mark.nightly
@pytest.mark.parametrize("end", [Command.hang_up, Command.terminate_all])
def test_closed_terminal_and_end_of_a_batch_job_save_the_trials(
    grid: Uninterrupted, start: Start, ray_address: str, tmp_path: Path, end: Callable[[Command], None]
) -> None:
    folder = tmp_path / "runs" / "chaos"
    end_while_training(start, grid, end)
    assert any(0 < progress.step < progress.total_steps for progress in find_saved_progress(folder))
    assert (folder / "results.csv").exists() and (folder / "report.html").exists()
    assert start(grid[0], "--address", ray_address).wait() == 0
    assert_same(folder, grid[1])


def test_ctrl_c_saves_the_trials_and_leaves_no_process(
    grid: Uninterrupted, start: Start, ray_address: str, tmp_path: Path
) -> None:
    """Two commands with a Ray of their own, interrupted once and twice; a third one runs the sweep to its end."""
    folder = tmp_path / "runs" / "chaos"
    command = end_while_training(start, grid, Command.interrupt)

    assert "val loss" in command.read_output()
    assert "run the same command to resume" in command.read_output()
    saved = find_saved_progress(folder)
    assert any(0 < progress.step < progress.total_steps for progress in saved), saved
    assert not any(progress.evaluations for progress in saved)

    def interrupt_twice(command: Command) -> None:
        command.interrupt()
        command.wait_for(lambda: "Ctrl-C again to exit at once" in command.read_output(), between=0.005)
        command.interrupt()

    end_while_training(start, grid, interrupt_twice)

    assert start(grid[0], "--address", ray_address).wait() == 0
    assert_same(folder, grid[1])
