"""Ray Tune searcher and scheduler backed by the trial queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raylm.config.trial import TrialConfig
from raylm.results.folder import load_row
from raylm.results.storage import Storage
from raylm.tuning.trial_queue import TrialQueue


def get_trial_config(trial: Trial) -> TrialConfig:
    """The trial that Tune runs, as raylm knows it."""
    return TrialConfig.from_record(trial.config)


class QueueSearcher(Searcher):
    """Hands Tune the trials of a line-up."""

    def __init__(self, queue: TrialQueue, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._queue = queue
        self._on_change = on_change

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into its state, which raylm never goes on from."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Nothing of Tune's own is searched."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config; None: not before another has ended."""
        proposed = len(self._queue.trials)
        trial = self._queue.next_trial()
        if len(self._queue.trials) > proposed or self._queue.all_dispatched:
            self._on_change()
        if trial is not None:
            return trial.as_dict()
        return Searcher.FINISHED if self._queue.all_dispatched else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The callback is told more."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save: the line-up follows from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class QueueScheduler(FIFOScheduler):
    """Stops the trials that the line-up finds beyond their limits."""

    def __init__(self, queue: TrialQueue, storage: Storage) -> None:
        super().__init__()
        self._queue, self._storage = queue, storage

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher's."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on, as its checkpoint in storage tells."""
        if "val_loss" not in result or result.get("diverged"):
            return str(TrialScheduler.CONTINUE)
        config = get_trial_config(trial)
        beyond = self._queue.find_stop_reason(config, load_row(self._storage, config))
        return str(TrialScheduler.STOP if beyond else TrialScheduler.CONTINUE)
