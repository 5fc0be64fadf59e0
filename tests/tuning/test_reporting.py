"""Asynchronous reports: in order, one at a time, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from raylm.tuning.reporting import AsyncReporter


class FakeReport:
    """Substitute for `tune.report`, which needs a trial; blocks until `allowed` is set."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.reported: list[tuple[float, str]] = []
        self.folders: list[Path] = []
        self.error: BaseException | None = None

    def report(self, metrics: Mapping[str, float], *, checkpoint: Any) -> None:
        assert self.allowed.wait(timeout=30)
        if self.error:
            raise self.error
        folder = Path(checkpoint.path)
        self.folders.append(folder)
        self.reported.append((metrics["epoch"], (folder / "weights").read_text()))


@pytest.fixture
def fake_report(monkeypatch: pytest.MonkeyPatch) -> FakeReport:
    fake = FakeReport()
    monkeypatch.setattr(tune, "report", fake.report)
    return fake


def save_text(text: str) -> Any:
    """Return a function that starts to save a text; it is written when the checkpoint is completed."""
    return lambda folder: lambda: (folder / "weights").write_text(text)


def test_training_continues_during_an_upload(fake_report: FakeReport) -> None:
    with AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, save_text("one"))  # returns before anything was reported
        reporter.raise_if_failed()
        assert fake_report.reported == []
        fake_report.allowed.set()
        reporter.submit({"epoch": 2}, save_text("two"))
        assert fake_report.reported[0] == (1, "one")
    assert fake_report.reported == [(1, "one"), (2, "two")]
    assert not any(folder.exists() for folder in fake_report.folders)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(0)])
def test_error_of_a_report_is_raised_by_the_next_check(fake_report: FakeReport, error: BaseException) -> None:
    """Tune stops a trial by SystemExit."""
    fake_report.error = error
    fake_report.allowed.set()
    steps = 0
    with pytest.raises(type(error)) as caught, AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, save_text("one"))
        for _ in range(3000):
            reporter.raise_if_failed()
            steps += 1
            threading.Event().wait(0.01)
    assert caught.value is error and steps < 3000


def test_error_of_the_last_report_is_raised_at_the_end(fake_report: FakeReport) -> None:
    fake_report.error = OSError("the bucket is away")
    fake_report.allowed.set()
    with pytest.raises(OSError, match="away"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, save_text("one"))


def test_started_upload_finishes_after_the_trial_failed(fake_report: FakeReport) -> None:
    threading.Timer(0.2, fake_report.allowed.set).start()
    with pytest.raises(ValueError, match="a bug"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, save_text("one"))
        raise ValueError("a bug")
    assert fake_report.reported == [(1, "one")]


def test_error_of_saving_is_raised_at_once_and_leaves_no_file(
    fake_report: FakeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(folder: Path) -> Callable[[], None]:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, fail)
    assert list(tmp_path.iterdir()) == []


def test_training_continues_while_a_checkpoint_is_written(fake_report: FakeReport) -> None:
    may_write = threading.Event()

    def start_saving(folder: Path) -> Callable[[], None]:
        def complete() -> None:
            assert may_write.wait(timeout=30) and threading.current_thread() is not threading.main_thread()
            (folder / "weights").write_text("one")

        return complete

    fake_report.allowed.set()
    with AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, start_saving)  # returns before anything is written
        reporter.raise_if_failed()
        may_write.set()
    assert fake_report.reported == [(1, "one")]


def test_error_of_completing_a_checkpoint_ends_the_trial_and_reports_nothing(
    fake_report: FakeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def start_saving(folder: Path) -> Callable[[], None]:
        def complete() -> None:
            (folder / "half").write_text("half")
            raise OSError(28, "No space left on device")

        return complete

    fake_report.allowed.set()
    with pytest.raises(OSError, match="No space"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, start_saving)
        for _ in range(3000):
            reporter.raise_if_failed()
            threading.Event().wait(0.01)
    assert list(tmp_path.iterdir()) == [] and fake_report.reported == []
