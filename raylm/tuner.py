"""A launch: the missing trials of a sweep through Ray Tune, from starting Ray to its last trial."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import; the display is ours
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from raylm import results
from raylm.config import Resources, Sweep, TrialConfig
from raylm.console import Live
from raylm.errors import UserError, WorkError
from raylm.prepare import Prepared
from raylm.trainable import Board, Job, train_gpt2

WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a worker that still writes a checkpoint can be used again after it
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
PENDING_TRIALS = 100
"""Trials that wait for resources at a time; with Tune's own number for a searcher, 1, they start one after another."""
SECONDS_BETWEEN_LOOKS = 0.5


class PlannedTrials(Searcher):
    """Hands Tune the trials of a plan one by one, in its order."""

    def __init__(self, trials: Sequence[TrialConfig]) -> None:
        super().__init__()
        self._waiting = [trial.as_dict() for trial in trials]

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Nothing is searched here."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config."""
        return self._waiting.pop(0) if self._waiting else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned here."""


class Watcher(tune.Callback):
    """Tells the display what Tune does, and storage how trials ended that have no finished checkpoint."""

    def __init__(self, launch: Path, live: Live) -> None:
        self._launch = launch
        self._live = live

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into its state, which raylm never goes on from."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial got its resources."""
        self._live.started(_config(trial).run_name)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an evaluation, or the reason why it cannot be run."""
        if "val_loss" in result:
            self._live.evaluated(_config(trial).run_name, result)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed and is started again."""
        self._live.retried(_config(trial).run_name, _reason(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's function returned."""
        config, last = _config(trial), trial.last_result or {}
        if "reason" in last:
            self._end(config, results.FAILED, str(last["reason"]))
        elif last.get("diverged"):
            self._end(config, results.DIVERGED, f"the loss was not finite in epoch {last['epoch']:.0f}")
        else:
            self._live.ended(config.run_name, results.DONE, "")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for the last time."""
        self._end(_config(trial), results.FAILED, _reason(trial))

    def _end(self, config: TrialConfig, status: str, reason: str) -> None:
        results.write_ending(self._launch, config, status, reason)
        self._live.ended(config.run_name, status, reason)


def _config(trial: Trial) -> TrialConfig:
    return TrialConfig.recorded(trial.config)


def _reason(trial: Trial) -> str:
    """What a trial failed of the last time, in a line, from the file in which Tune notes it at once."""
    path = Path(trial.error_file or "")
    noted = path.read_text(encoding="utf-8").rsplit("Failure #", 1)[-1] if path.is_file() else ""
    lines = [line.strip() for line in noted.splitlines()[1:] if line.strip()]
    if not lines:
        return "for a reason that Ray does not tell"
    raised = any(line.startswith("Traceback") for line in lines)
    return (lines[-1] if raised else lines[0])[:500]


@contextlib.contextmanager
def started_ray(address: str | None, verbose: bool) -> Iterator[str | None]:
    """Ray on this machine, or a connection to a running cluster; gives the dashboard's address.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    os.environ.update({name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()})
    here = address in (None, "local")
    try:
        context = ray.init(
            address,
            include_dashboard=True if here else None,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            runtime_env=None if here else {"env_vars": WORKER_ENVIRONMENT},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"Ray cannot be reached at {address or 'this machine'}: {first_line}") from error
    try:
        url = context.dashboard_url
        yield f"http://{url}" if url else None
    finally:
        ray.shutdown()


def resolved_resources(asked: Resources) -> dict[str, float]:
    """The resources of a trial on this cluster.

    Raises:
        UserError: if no node of the cluster has them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    if not any(node.get("CPU", 0) >= asked.cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = "; ".join(sorted(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes))
        raise UserError(
            f"a trial asks for {asked.cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has: "
            f"{len(nodes)} nodes, {there}; ask for less with resources=Resources(gpus=..., cpus=...)"
        )
    return {"cpu": asked.cpus, "gpu": gpus}


def launch(
    sweep: Sweep,
    prepared: Prepared,
    folder: Path,
    resources: Mapping[str, float],
    max_concurrent: int | None,
    live: Live,
) -> bool:
    """Runs trials to their end; says whether all were begun and none was stopped from outside.

    Args:
        folder: of this launch, in the sweep's results folder.

    Raises:
        WorkError: if Tune itself gives up.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(min(len(prepared.trials), PENDING_TRIALS))
    board = ray.remote(num_cpus=0)(Board).remote()
    job = Job(
        sweep_folder=str(folder.parent),
        corpora={key: ray.put(corpus) for key, corpus in prepared.corpora.items()},
        sources=prepared.sources,
        precision=sweep.precision,
        gpus=resources["gpu"],
        cpus=int(resources["cpu"]),
        board=board,
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_gpt2, job=job), dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=PlannedTrials(prepared.trials),
            num_samples=len(prepared.trials),
            max_concurrent_trials=max_concurrent,
            trial_name_creator=lambda trial: _config(trial).run_name,
            trial_dirname_creator=lambda trial: _config(trial).run_name,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val_loss", checkpoint_score_order="min"
            ),
            callbacks=[Watcher(folder, live)],
            verbose=0,
        ),
    )
    with _steps_shown(board, live), _termination_as_interrupt():
        try:
            grid = tuner.fit()
        except Exception as error:  # whatever it is, what was finished is in storage
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkError(f"Ray Tune gave up: {lines[-1]}") from error
    outcomes = [grid[number] for number in range(len(grid))]
    ended = [result for result in outcomes if result.error is not None or (result.metrics or {}).get("done")]
    return len(ended) == len(prepared.trials)


@contextlib.contextmanager
def _steps_shown(board: Any, live: Live) -> Iterator[None]:
    """Brings the steps of running trials to the display, in a thread of its own."""
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(SECONDS_BETWEEN_LOOKS):
            try:
                steps = ray.get(board.all.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # no display is worth a trial; the next look may succeed
            for run, (step, total_steps, loss) in steps.items():
                live.stepped(run, step, total_steps, loss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=15)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C: Tune stops its trials and returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
