"""A launch: the missing trials of a sweep through Ray Tune, from starting Ray to its last trial."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import; the display is ours
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.bridge import FromLineup, StepsShown, StopsEarly, Watcher, config_of
from raylm.config import Resources, Sweep, TrialConfig
from raylm.console import Live
from raylm.errors import UserError, WorkError
from raylm.lineup import Lineup
from raylm.prepare import Prepared
from raylm.trainable import Board, Job, train_gpt2

WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a worker that still writes a checkpoint can be used again after it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a checkpoint on the way has no loss
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""What Tune copies from the command's environment into that of the trials (ray/tune/execution/class_cache.py)."""
PENDING_TRIALS = 100
"""Trials that wait for resources at a time; with Tune's own number for a searcher, 1, they start one after another."""
MOST_DEATHS = 20
"""How often the process or the node of a trial may die; errors that it raises are counted apart."""


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
    if here:
        _keep_token()
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
    cpus = max(asked.cpus, int(gpus))  # one per rank at least
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = "; ".join(sorted(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes))
        raise UserError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has: "
            f"{len(nodes)} nodes, {there}; ask for less with resources=Resources(gpus=..., cpus=...)"
        )
    return {"cpu": cpus, "gpu": gpus}


def slots(resources: Mapping[str, float], max_concurrent: int | None) -> int:
    """Trials that the cluster as it is runs at a time."""
    found = 0
    for node in (node["Resources"] for node in ray.nodes() if node["Alive"]):
        fits = [node.get(name.upper(), 0) / amount for name, amount in resources.items() if amount]
        found += int(min(fits) + 1e-9)
    return max(1, min(found, max_concurrent or found))


def ranks_of(resources: Mapping[str, float]) -> int:
    """Processes that train a trial: one per GPU."""
    return max(1, int(resources["gpu"]))


def device_of(resources: Mapping[str, float]) -> str:
    """What trials compute on."""
    return "cuda" if resources["gpu"] else "cpu"


def placement(resources: Mapping[str, float]) -> tune.PlacementGroupFactory:
    """A bundle for each rank, all on one node; the first one has the CPUs that cannot be shared evenly."""
    ranks = ranks_of(resources)
    share = {"CPU": resources["cpu"] // ranks, "GPU": resources["gpu"] / ranks}
    first = {**share, "CPU": share["CPU"] + resources["cpu"] % ranks}
    return tune.PlacementGroupFactory([first, *[share] * (ranks - 1)], strategy="STRICT_PACK")


@dataclass(frozen=True)
class Launched:
    """How a launch came to its end."""

    complete: bool
    """Whether all trials were begun and have ended."""
    pause_reason: str
    """Why it was paused, if it was."""
    set_aside: list[TrialConfig]
    """Trials that ran out of memory beside others."""


def launch(
    sweep: Sweep,
    prepared: Prepared,
    folder: Path,
    resources: Mapping[str, float],
    max_concurrent: int | None,
    lineup: Lineup,
    on_change: Callable[[], None],
    live: Live,
    *,
    alone: bool = False,
) -> Launched:
    """Runs the trials of a line-up to their end, or until something pauses them.

    Args:
        folder: of this launch, in the sweep's results folder.
        on_change: told when a trial was added to the line-up.
        alone: run one trial at a time; one that runs out of memory then has failed.

    Raises:
        WorkError: if Tune itself gives up.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING_TRIALS)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}  # no lost node takes it along
    board = ray.remote(num_cpus=0, **lasting)(Board).remote()
    ranks = ranks_of(resources)
    job = Job(
        sweep_folder=str(folder.parent),
        corpora={key: ray.put(corpus) for key, corpus in prepared.corpora.items()},
        sources=prepared.sources,
        precision=sweep.precision,
        device=device_of(resources),
        ranks=ranks,
        gpus=resources["gpu"] / ranks,
        threads=int(resources["cpu"]) // ranks,
        part=_part(resources) / ranks,
        max_failures=sweep.max_failures,
        alone=alone,
        board=board,
    )
    budget_seconds = sweep.time_budget_hours * 3600 if sweep.time_budget_hours else None
    watcher = Watcher(folder, lineup, live, board, budget_seconds)
    own_scheduler = StopsEarly(lineup, folder.parent) if sweep.scheduler == "asha" else sweep.scheduler
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_gpt2, job=job), placement(resources)),
        tune_config=tune.TuneConfig(
            search_alg=FromLineup(lineup, on_change),
            scheduler=own_scheduler,
            **_metric_for(own_scheduler),
            num_samples=lineup.total,
            max_concurrent_trials=1 if alone else max_concurrent,
            trial_name_creator=lambda trial: config_of(trial).run_name,
            trial_dirname_creator=lambda trial: config_of(trial).run_name,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="checkpoint_score", checkpoint_score_order="min"
            ),
            callbacks=[watcher],
            verbose=0,
        ),
    )
    with StepsShown(board, live), _signals_as_before(), _keys_kept():
        try:
            tuner.fit()
        except Exception as error:  # whatever it is, what was finished is in storage
            if "low on memory" not in str(error):
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise WorkError(f"Ray Tune gave up: {lines[-1]}") from error
            watcher.out_of_memory(alone)
    return Launched(lineup.complete, watcher.pause_reason, list(watcher.set_aside.values()))


def _part(resources: Mapping[str, float]) -> float:
    """A trial's part of a node: the largest of its parts of the node's CPUs and GPUs, on the largest node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    parts = [
        max(amount / node[name.upper()] for name, amount in resources.items() if amount)
        for node in nodes
        if all(node.get(name.upper(), 0) >= amount for name, amount in resources.items() if amount)
    ]
    return float(min(1.0, *parts))


def _metric_for(scheduler: Any) -> dict[str, str]:
    """What a scheduler of Ray's compares trials by, unless it was told."""
    if scheduler is None or isinstance(scheduler, StopsEarly) or getattr(scheduler, "metric", None):
        return {}
    return {"metric": "adj_val_loss", "mode": "min"}


@contextlib.contextmanager
def _keys_kept() -> Iterator[None]:
    """Hides keys that Tune would put into the runtime environment of trials, which Ray writes into a readable log.

    Trials on this machine have them all the same, from Ray's own processes.
    """
    hidden = {name: os.environ.pop(name) for name in KEYS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _keep_token() -> None:
    """Makes the token of Ray's dashboard, as Ray would itself, but readable by nobody else."""
    file = Path.home() / ".ray" / "auth_token"
    if file.exists():
        file.chmod(0o600)
    elif not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = file.with_name(f".auth_token.{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
        beside.replace(file)  # whole, whoever reads it


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Undoes what Tune and the watcher do to the handlers of SIGINT and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
