"""A trial's evaluations handed to Ray Tune beside its training: while a checkpoint goes into storage, steps go on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from ray import tune

Metrics = Mapping[str, float]


class Reporter:
    """Hands over one evaluation at a time, in their order. Used as a context, which ends when all are handed over.

    Tune ends a trial by raising SystemExit where it reports. That, and whatever else reporting raises, is raised again
    in the trial's own thread, at the next `look` or `wait`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # a checkpoint on its way arrives, whatever has happened to the trial
        if raised is None:
            self.wait()

    def hand_over(self, metrics: Metrics, save: Callable[[Path], None]) -> None:
        """Begins to report an evaluation, with the checkpoint that `save` writes into a folder at once."""
        self.wait()
        folder = tempfile.TemporaryDirectory()
        try:
            save(Path(folder.name))
            self._under_way = self._thread.submit(_report, metrics, folder)
        except BaseException:
            folder.cleanup()
            raise

    def look(self) -> None:
        """Raises what reporting has raised meanwhile."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all that was handed over has been reported; raises what that raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def _report(metrics: Metrics, folder: tempfile.TemporaryDirectory[str]) -> None:
    with folder as path:
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(path))
