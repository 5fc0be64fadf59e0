"""Reporting beside training: in order, one at a time, and nothing that it raises is lost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from raylm.tuning.reporting import AsyncReporter


class Storage:
    """In the place of `tune.report`, which needs a trial: takes checkpoints when it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.taken: list[tuple[float, str]] = []
        self.folders: list[Path] = []
        self.raises: BaseException | None = None

    def report(self, metrics: Mapping[str, float], *, checkpoint: Any) -> None:
        assert self.open.wait(timeout=30)
        if self.raises:
            raise self.raises
        folder = Path(checkpoint.path)
        self.folders.append(folder)
        self.taken.append((metrics["epoch"], (folder / "weights").read_text()))


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    made = Storage()
    monkeypatch.setattr(tune, "report", made.report)
    return made


def writes(text: str) -> Any:
    return lambda folder: (folder / "weights").write_text(text)


def test_a_trial_goes_on_while_its_checkpoint_is_on_its_way(storage: Storage) -> None:
    with AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, writes("one"))  # returns although nothing was taken
        reporter.raise_if_failed()
        assert storage.taken == []
        storage.open.set()
        reporter.submit({"epoch": 2}, writes("two"))
        assert storage.taken[0] == (1, "one")
    assert storage.taken == [(1, "one"), (2, "two")]
    assert not any(folder.exists() for folder in storage.folders)


@pytest.mark.parametrize("raises", [OSError(28, "No space left on device"), SystemExit(0)])
def test_what_reporting_raises_is_raised_at_the_next_look(storage: Storage, raises: BaseException) -> None:
    """SystemExit: Tune has stopped the trial."""
    storage.raises = raises
    storage.open.set()
    steps = 0
    with pytest.raises(type(raises)) as caught, AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, writes("one"))
        for _ in range(3000):
            reporter.raise_if_failed()
            steps += 1
            threading.Event().wait(0.01)
    assert caught.value is raises and steps < 3000


def test_at_the_end_what_reporting_raises_is_raised(storage: Storage) -> None:
    storage.raises = OSError("the bucket is away")
    storage.open.set()
    with pytest.raises(OSError, match="away"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, writes("one"))


def test_a_checkpoint_on_its_way_arrives_although_its_trial_has_failed(storage: Storage) -> None:
    threading.Timer(0.2, storage.open.set).start()
    with pytest.raises(ValueError, match="a bug"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, writes("one"))
        raise ValueError("a bug")
    assert storage.taken == [(1, "one")]


def test_a_checkpoint_that_cannot_be_written_is_raised_at_once_and_leaves_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), AsyncReporter() as reporter:
        reporter.submit({"epoch": 1}, fails)
    assert list(tmp_path.iterdir()) == []
