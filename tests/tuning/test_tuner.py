"""Interfaces to Tune: searcher, resources of a trial, reasons for failures."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher
from transformers import GPT2Config

from raylm import TrialConfig
from raylm.config.catalog import MODELS
from raylm.config.dataset import DatasetSpec
from raylm.config.sweep import Sweep
from raylm.data.corpus import Corpus
from raylm.errors import UserError
from raylm.results.rows import DONE, PENDING, Row
from raylm.results.storage import Folder
from raylm.training.models import ModelSource, load_shape
from raylm.tuning.callbacks import read_failure_reason
from raylm.tuning.nodes import resolve_precision
from raylm.tuning.prepare import LaunchContext, PreparedInputs
from raylm.tuning.resources.capacity import Capacity
from raylm.tuning.resources.requests import build_placement_group, estimate_gpu_memory_gib
from raylm.tuning.searcher import QueueSearcher
from raylm.tuning.trial_process import set_worker_environment
from raylm.tuning.trial_queue import SuggestFn, TrialQueue
from raylm.tuning.tuner import TuneRunner

TRIALS = [TrialConfig(seed=seed) for seed in (3, 1, 2)]


def suggest_in_order(*trials: TrialConfig) -> SuggestFn:
    remaining = iter(trials)
    return lambda outcomes: next(remaining, None)


class FixedRows:
    """Rows of which those of the given trials are done."""

    def __init__(self, done: Sequence[TrialConfig] = ()) -> None:
        self.done = done

    def load_row(self, trial: TrialConfig) -> Row:
        return Row(trial, DONE if trial in self.done else PENDING, "", None, None)

    def record_stop(self, trial: TrialConfig, reason: str) -> None:
        raise AssertionError("no trial is stopped here")


def test_searcher_returns_trials_in_order() -> None:
    changes: list[int] = []
    queue = TrialQueue(suggest_in_order(*TRIALS), FixedRows(), max_trials=3, delay=None)
    searcher = QueueSearcher(queue, lambda: changes.append(len(queue.trials)))
    assert [searcher.suggest(str(number)) for number in range(3)] == [trial.as_dict() for trial in TRIALS]
    assert changes == [1, 2, 3]
    assert searcher.suggest("3") == Searcher.FINISHED


def test_searcher_waits_for_results() -> None:
    done: list[TrialConfig] = []
    queue = TrialQueue(suggest_in_order(*TRIALS), FixedRows(done), max_trials=3, delay=1)
    searcher = QueueSearcher(queue, lambda: None)
    for number, trial in enumerate(TRIALS):
        assert searcher.suggest(str(number)) == trial.as_dict()
        assert searcher.suggest("too early") in ([None] if number < 2 else [Searcher.FINISHED])
        done.append(trial)
        queue.mark_finished(Row(trial, DONE, "", None, None))


def test_searcher_calls_on_change_at_the_end_if_the_last_trials_are_done() -> None:
    changes: list[int] = []
    queue = TrialQueue(suggest_in_order(*TRIALS), FixedRows(TRIALS[1:]), max_trials=3, delay=None)
    searcher = QueueSearcher(queue, lambda: changes.append(len(queue.trials)))
    assert searcher.suggest("0") == TRIALS[0].as_dict()
    assert searcher.suggest("1") == Searcher.FINISHED
    assert changes == [1, 3]


def test_searcher_can_be_pickled() -> None:
    queue = TrialQueue(suggest_in_order(*TRIALS), FixedRows(), max_trials=3, delay=None)
    assert isinstance(pickle.loads(pickle.dumps(QueueSearcher(queue, lambda: None))), QueueSearcher)


@pytest.mark.parametrize(
    ("resources", "bundles"),
    [
        ({"cpu": 3, "gpu": 0.0}, [{"CPU": 3}]),
        ({"cpu": 1, "gpu": 0.5}, [{"CPU": 1, "GPU": 0.5}]),
        ({"cpu": 2, "gpu": 2.0}, [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}]),
        ({"cpu": 8, "gpu": 3.0}, [{"CPU": 4, "GPU": 1}, {"CPU": 2, "GPU": 1}, {"CPU": 2, "GPU": 1}]),
    ],
)
def test_each_gpu_of_a_trial_has_its_own_bundle_on_one_node(
    resources: dict[str, float], bundles: list[dict[str, float]]
) -> None:
    group = build_placement_group(resources)
    assert group.bundles == bundles and group.strategy == "STRICT_PACK"


def test_trial_requests_a_gpu_with_enough_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(GPT2Config().to_json_string())
    small, large = TrialConfig(), TrialConfig(model="owner/gpt2")
    small_shape = MODELS["gpt2-nano"].shape
    large_shape = load_shape(ModelSource("owner/gpt2", str(tmp_path), pretrained=False))
    assert estimate_gpu_memory_gib(small, small_shape, "bfloat16", 80.0) == 1
    needed = estimate_gpu_memory_gib(large, large_shape, "bfloat16", 80.0)
    more = TrialConfig(model="owner/gpt2", optimizer="adamw")
    assert 3 <= needed <= 6 and estimate_gpu_memory_gib(more, large_shape, "float32", 80.0) > needed
    assert estimate_gpu_memory_gib(large, large_shape, "bfloat16", 2.0) == 2, (
        "no trial waits for a GPU that does not exist"
    )
    bundles = build_placement_group({"cpu": 2, "gpu": 2.0}, needed).bundles
    assert bundles == [{"CPU": 1, "GPU": 1, "gpu_gib": needed}] * 2


def with_gpus(*types: str) -> Capacity:
    """Return the capacity of a cluster with a node for each type of GPU."""
    return Capacity([{"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{name}": 1.0} for name in types])


@pytest.mark.parametrize(
    ("gpu_types", "requested", "precision"),
    [
        (["H100", "A100-80G"], "auto", "bfloat16"),
        (["H100", "T4"], "auto", "float16"),
        (["V100"], "auto", "float16"),
        (["V100"], "float16", "float16"),
        (["H100", "unknown"], "bfloat16", "bfloat16"),
        (["H100"], "float32", "float32"),
        (["H100", "unknown"], "auto", "auto"),  # each trial asks its own GPU
    ],
)
def test_precision_of_a_launch_holds_for_all_gpus_of_the_cluster(
    gpu_types: list[str], requested: str, precision: str
) -> None:
    assert resolve_precision(requested, {"cpu": 1, "gpu": 1.0}, with_gpus(*gpu_types)) == precision


def test_bfloat16_is_refused_if_a_gpu_of_the_cluster_lacks_it() -> None:
    with pytest.raises(UserError, match="bfloat16 would be emulated on T4; expected float32, or auto"):
        resolve_precision("bfloat16", {"cpu": 1, "gpu": 1.0}, with_gpus("H100", "T4"))


def test_memory_of_an_unknown_precision_is_that_of_the_largest() -> None:
    shape, trial = MODELS["gpt2"].shape, TrialConfig(model="gpt2")
    needed = {name: estimate_gpu_memory_gib(trial, shape, name, 80.0) for name in ("float32", "bfloat16", "auto")}
    assert needed["auto"] == max(needed["float32"], needed["bfloat16"])


def test_resource_request_is_pickled_without_corpora(tmp_path: Path) -> None:
    corpora = {(DatasetSpec("imdb"), "gpt2"): cast(Corpus, SimpleNamespace(tokens=np.zeros(1_000_000, np.int32)))}
    sweep, resources = Sweep(name="s", space={"seed": 0}), {"cpu": 1, "gpu": 0.0}
    runner = TuneRunner(sweep, PreparedInputs(corpora, {}, {}), Folder(tmp_path), resources, Capacity([]), "float32")
    request = runner.resource_request(cast(LaunchContext, SimpleNamespace()))
    assert len(cloudpickle.dumps(request)) < 10_000, "Ray refuses an actor class of more than 100 MB"


RAISED = """\
ray::ImplicitFunc.train() (pid=1, ip=10.0.0.1, actor_id=ab, repr=train_gpt2)
  File "x.py", line 2, in train
Traceback (most recent call last):
  File "y.py", line 1, in f
ValueError: not enough of it
"""


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([RAISED], "ValueError: not enough of it"),
        ([RAISED, str(ActorDiedError())], "The actor died unexpectedly before finishing this task."),
        ([str(ActorDiedError()), RAISED], "ValueError: not enough of it"),
        ([], "unknown error (Ray gave no details)"),
    ],
)
def test_failure_reason_is_one_line_of_the_last_failure(tmp_path: Path, failures: list[str], reason: str) -> None:
    file = tmp_path / "error.txt"
    if failures:  # as Tune writes it
        file.write_text("".join(f"Failure # {n + 1} (occurred at x)\n{text}\n" for n, text in enumerate(failures)))
    assert read_failure_reason(cast(Any, SimpleNamespace(error_file=str(file)))) == reason


def test_variables_that_a_launcher_left_do_not_reach_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FSDP's variables, Transformers loads weights on the first local rank only, which raylm does not name."""
    left = {"RANK": "3", "WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "1", "FSDP_CPU_RAM_EFFICIENT_LOADING": "1"}
    monkeypatch.setattr(os, "environ", {**left, "PATH": "/bin", "TOKENIZERS_PARALLELISM": "true"})
    set_worker_environment()
    assert dict(os.environ) == {
        "PATH": "/bin",
        "THP_MEM_ALLOC_ENABLE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",
    }
