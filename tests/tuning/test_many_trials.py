"""Work of the driver for each trial: it does not grow with the number of trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import tune
from ray.tune.experiment import Trial
from simulated import SimulatedStorage

from raylm import Sweep
from raylm.config.options import RunOptions
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason
from raylm.events import TrialListener
from raylm.results import folder as results_folder
from raylm.results import sweep_record
from raylm.results.folder import find_results, prune_checkpoints
from raylm.results.rows import DONE, Row
from raylm.results.storage import Folder
from raylm.tuning.callbacks import LaunchCallback
from raylm.tuning.launch import Launch
from raylm.tuning.prepare import PreparedInputs
from raylm.tuning.searcher import QueueSearcher
from raylm.tuning.trial_queue import TrialQueue
from raylm.tuning.tuner import TuneResult, TuneRunner


@dataclass(frozen=True)
class CountingFolder(Folder):
    """Folder that counts what is listed and written."""

    listed: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)

    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        self.listed[folder] += 1
        return super().list_entries(folder, recursive=recursive)

    def write(self, name: str, text: str) -> None:
        self.written[name] += 1
        super().write(name, text)


class SearcherRunner:
    """Runner that asks the searcher for each trial as Tune does, and ends each at once."""

    resources, precision = {"cpu": 1.0, "gpu": 0.0}, "float32"

    def run(
        self,
        launches: list[str],
        queue: TrialQueue,
        listener: TrialListener,
        on_change: Callable[[], None],
        *_: Any,
    ) -> TuneResult:
        searcher = QueueSearcher(queue, on_change)
        while isinstance(config := searcher.suggest("0"), dict):
            queue.mark_finished(Row(TrialConfig(**config), DONE, "", None, None))
        return TuneResult(queue.all_finished, None, [])


def run_launch(storage: CountingFolder, num_trials: int) -> PauseReason | None:
    sweep = Sweep(name="s", space={"seed": tune.grid_search(list(range(num_trials)))})
    launch = Launch(sweep, PreparedInputs({}, {}, {}), find_results(sweep, storage), RunOptions(), "id", print)
    launch._runner = cast(TuneRunner, SearcherRunner())
    return launch.run(TrialListener())


def test_launch_lists_its_folder_and_writes_the_record_as_often_for_many_trials_as_for_few(tmp_path: Path) -> None:
    few, many = CountingFolder(tmp_path / "few"), CountingFolder(tmp_path / "many")
    assert run_launch(few, 3) is None and run_launch(many, 40) is None
    assert many.listed == few.listed and many.written == few.written == {"sweep.json": 1}
    record = sweep_record.load(many)
    assert record is not None and len(record.trials) == 40
    text = many.read("sweep.json")
    assert json.dumps(json.loads(text), indent=2) == text


def test_end_of_a_trial_lists_the_folders_of_that_trial_only(tmp_path: Path) -> None:
    storage, trial, others = CountingFolder(tmp_path), TrialConfig(seed=1), [TrialConfig(seed=2), TrialConfig(seed=3)]
    for other in (trial, *others):
        results_folder.write_final_status(storage, "launch-001", other, "failed", "no memory")
    queue = TrialQueue(lambda outcomes: None, SimulatedStorage(), max_trials=3, delay=None)
    launches = ["launch-001", "launch-002"]
    callback = LaunchCallback(storage, launches, queue, TrialListener(), SimpleNamespace(), deadline=None)
    ended = SimpleNamespace(config=trial.as_dict(), last_result={"reason": "too large"})
    callback.on_trial_complete(0, [], cast(Trial, ended))
    names = {f"{launch}/{name}" for launch in launches for name in trial.folder_names}
    assert storage.listed == dict.fromkeys(names, 1)
    assert storage.written[f"launch-002/{trial.run_name}/status.json"] == 1


def test_superseded_checkpoints_of_all_trials_are_found_by_one_listing(tmp_path: Path) -> None:
    storage = CountingFolder(tmp_path)
    results = find_results(Sweep(name="s", space={"seed": tune.grid_search(list(range(20)))}), storage)
    storage.listed.clear()
    prune_checkpoints(results)
    assert storage.listed == {"": 1}


@pytest.mark.parametrize("asha", [False, True])
def test_outcome_of_each_trial_is_evaluated_once(monkeypatch: pytest.MonkeyPatch, asha: bool) -> None:
    calls: Counter[int] = Counter()
    original = TrialQueue._get_outcome

    def count(queue: TrialQueue, index: int) -> Row:
        calls[index] += 1
        return original(queue, index)

    monkeypatch.setattr(TrialQueue, "_get_outcome", count)
    storage, trials = SimulatedStorage(), iter([TrialConfig(seed=seed) for seed in range(30)])
    queue = storage.build_queue(lambda outcomes: next(trials, None), 30, 4, asha=asha)
    storage.run_launch(queue)
    assert queue.all_finished and set(calls.values()) == {1}
