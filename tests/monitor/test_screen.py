"""Screens that lack letters, are closed, full, or whose reader has left."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raylm.monitor.console import Console
from raylm.monitor.screen import LossyStream
from raylm.report.analysis import Results

RAYLM = f"{shlex.quote(sys.executable)} -c 'from raylm.cli.app import app; app()'"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash; the exit code is that of the first failing part of a pipe."""
    env = {**os.environ, **variables}
    line = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=env, errors="replace")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_screen_lacks_are_escaped(trained_sweep: Results, tmp_path: Path, encoding: str) -> None:
    folder = Path(trained_sweep.storage.uri).rename(tmp_path / "größe–文字")
    for output in ("table", "markdown"):
        done = shell(f"{RAYLM} report {folder} --format {output}", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
    done = shell(f"{RAYLM} report {folder}/none", PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and "\\u2013\\u6587" in done.stderr, done.stderr


@pytest.mark.parametrize("output", ["", "--format csv", "--json"])
def test_reader_that_leaves_ends_a_command_in_silence(trained_sweep: Results, output: str) -> None:
    done = shell(f"{RAYLM} report {trained_sweep.storage.uri} {output} | head -c 5")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_closed_stream_is_no_failure(trained_sweep: Results, closed: str) -> None:
    done = shell(f"{RAYLM} report {trained_sweep.storage.uri} {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_screen_is_one_message(trained_sweep: Results) -> None:
    done = shell(f"{RAYLM} report {trained_sweep.storage.uri} > /dev/full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "full" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_screen_that_fails_is_discarded_while_working(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        stream = LossyStream(full)
        for _ in range(3):
            assert stream.write("text") == 4
            stream.flush()


def test_console_of_a_run_goes_on_without_its_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        console = Console(keeps_working=True)
        os.close(read_end)
        for _ in range(3):
            console.print_note("nobody reads this")
