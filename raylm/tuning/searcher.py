"""Ray Tune searcher and scheduler backed by the trial queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raylm.config.trial import TrialConfig
from raylm.results.folder import load_row
from raylm.results.measures import Measure
from raylm.results.storage import Storage
from raylm.tuning.trial_queue import TrialQueue


def get_trial_config(trial: Trial) -> TrialConfig:
    """Return the config of a trial of Tune."""
    return TrialConfig.from_record(trial.config)


class QueueSearcher(Searcher):
    """Tune searcher that returns the trials of a queue."""

    def __init__(self, queue: TrialQueue, on_change: Callable[[], None]) -> None:
        """Create the searcher.

        Args:
            on_change: called when trials were added to the queue, and when all of them have been returned.
        """
        super().__init__()
        self._queue, self._on_change = queue, on_change

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its searcher, but raylm never restores Tune's state."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Return True: the queue needs no metric, mode or space of Tune's."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config, `FINISHED`, or None if another trial has to end first."""
        num_suggested = len(self._queue.trials)
        trial = self._queue.next_trial()
        if len(self._queue.trials) > num_suggested or self._queue.all_dispatched:
            self._on_change()
        if trial is not None:
            return trial.as_dict()
        return Searcher.FINISHED if self._queue.all_dispatched else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """No-op; the callback handles completion."""

    def save(self, checkpoint_path: str) -> None:
        """No-op; the queue is rebuilt from the rows in storage."""

    def restore(self, checkpoint_path: str) -> None:
        """No-op; see `save`."""


class QueueScheduler(FIFOScheduler):
    """Tune scheduler that stops trials early by the queue's limits (ASHA)."""

    def __init__(self, queue: TrialQueue, storage: Storage, launches: Sequence[str]) -> None:
        super().__init__()
        self._queue, self._storage, self._launches = queue, storage, launches

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state, as `QueueSearcher` does."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return `CONTINUE` or `STOP`, by the evaluations in the trial's latest checkpoint in storage."""
        if "val_loss" not in result or result.get("diverged"):
            return str(TrialScheduler.CONTINUE)
        config = get_trial_config(trial)
        reason = self._queue.find_stop_reason(config, load_row(self._storage, config, self._launches))
        return str(TrialScheduler.STOP if reason else TrialScheduler.CONTINUE)


def default_metric(scheduler: Any, measure: Measure) -> dict[str, str]:
    """Return metric and mode for a scheduler of Ray's that has none set, else an empty dict.

    Args:
        measure: loss that the trials are ranked by.
    """
    if scheduler is None or isinstance(scheduler, QueueScheduler) or getattr(scheduler, "metric", None):
        return {}
    return {"metric": measure.name.replace(" ", "_"), "mode": "min"}
