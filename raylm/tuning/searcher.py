"""Ray Tune searcher and scheduler backed by the trial queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raylm.config.trial import TrialConfig
from raylm.results.folder import find_row
from raylm.results.storage import Storage
from raylm.tuning.trial_queue import Lineup


def config_of(trial: Trial) -> TrialConfig:
    """The trial that Tune runs, as raylm knows it."""
    return TrialConfig.recorded(trial.config)


class FromLineup(Searcher):
    """Hands Tune the trials of a line-up."""

    def __init__(self, lineup: Lineup, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._lineup = lineup
        self._on_change = on_change

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into its state, which raylm never goes on from."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Nothing of Tune's own is searched."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config; None: not before another has ended."""
        proposed = len(self._lineup.trials)
        trial = self._lineup.next()
        if len(self._lineup.trials) > proposed or self._lineup.finished:
            self._on_change()
        if trial is not None:
            return trial.as_dict()
        return Searcher.FINISHED if self._lineup.finished else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The callback is told more."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save: the line-up follows from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class StopsEarly(FIFOScheduler):
    """Stops the trials that the line-up finds beyond their limits."""

    def __init__(self, lineup: Lineup, folder: Storage) -> None:
        super().__init__()
        self._lineup, self._folder = lineup, folder

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher's."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on, as its checkpoint in storage tells."""
        if "val_loss" not in result or result.get("diverged"):
            return str(TrialScheduler.CONTINUE)
        config = config_of(trial)
        beyond = self._lineup.is_beyond_limit(config, find_row(self._folder, config))
        return str(TrialScheduler.STOP if beyond else TrialScheduler.CONTINUE)
