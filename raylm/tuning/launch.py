"""One launch of a sweep: Ray, the queue of unfinished trials, the launch record, and the runs of Ray Tune."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raylm.config.options import RunOptions
from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import PauseReason
from raylm.events import Notify, TrialListener
from raylm.machine import allowed_cpus
from raylm.planning import throughput
from raylm.planning.throughput import Placement
from raylm.results import measures
from raylm.results.data_record import describe_mixed_search, index_data
from raylm.results.folder import count_unsuggested, find_results, list_launches, next_launch_name, parse_launch_number
from raylm.results.measures import Measure
from raylm.results.rows import SweepRows
from raylm.results.storage import Storage
from raylm.results.sweep_record import HardwareRecord, LaunchRecord, Rules, SweepRecord
from raylm.tuning import nodes
from raylm.tuning.connection import preload, session
from raylm.tuning.prepare import PreparedInputs
from raylm.tuning.resources.capacity import find_capacity
from raylm.tuning.sampling.record_writer import RecordWriter
from raylm.tuning.trial_queue import QueueHistory, StoredRows, TrialQueue
from raylm.tuning.tuner import TuneResult, TuneRunner
from raylm.units import pluralize

if TYPE_CHECKING:
    from raylm.tuning.search import Suggester

RECORDED_VERSIONS = ("raylm", "ray", "torch", "transformers", "tokenizers", "datasets", "optuna", "numpy")


class Launch:
    """One launch of a sweep, which runs all unfinished trials. Used as `with launch.connect(): launch.run(listener)`.

    Trials that run out of memory beside others are deferred: they run again one at a time, then the rest of the queue
    continues.
    """

    def __init__(
        self,
        sweep: Sweep,
        prepared: PreparedInputs,
        results: SweepRows,
        options: RunOptions,
        sweep_id: str,
        notify: Notify,
    ) -> None:
        """Create a launch.

        Args:
            results: rows of the sweep before the launch.
            sweep_id: identity of the results folder, for the launch record.
            notify: shows a note to the user.
        """
        self._sweep, self._prepared, self._results, self._options = sweep, prepared, results, options
        self._sweep_id, self._notify = sweep_id, notify
        self._placement: Placement | None = None
        self._runner: TuneRunner
        self._measure, self._rules = _find_objective(sweep, prepared, results)
        datasets = (spec.dataset for spec, _ in prepared.corpora)
        if sweep.search is not None and (note := describe_mixed_search(datasets, self._measure.name)):
            notify(note)

    @contextlib.contextmanager
    def connect(self) -> Iterator[None]:
        """Connect to Ray or start it, and check that the cluster can run the sweep.

        Raises:
            UserError: if the cluster cannot be reached, lacks the resources of a trial or the precision, or a node
                cannot use the storage or its GPUs.
        """
        sweep, requested = self._sweep, self._sweep.resources
        address = session.resolve_address(self._options.address)
        if address == "local":  # refuses before Ray is started
            requested = nodes.resolve_gpus(requested, nodes.list_local_gpus(), self._notify)
            nodes.check_local_precision(sweep.precision, on_cpu=requested.gpus == 0)
        num_trials = sweep.num_samples or sum(not row.is_finished for row in self._results.rows)
        num_first = preload.count_first_trials(requested, num_trials, self._options.max_concurrent)
        with session.connect_ray(address, self._options.verbose, num_first) as dashboard_url:
            capacity = find_capacity(is_local=address == "local", waits_for_workers=self._options.wait_for_workers)
            if address != "local" and requested.gpus != 0:
                requested = nodes.resolve_gpus(requested, nodes.list_gpus(), self._notify, more=capacity.may_start_gpus)
            sweep = replace(sweep, resources=requested)
            resources = capacity.resolve_resources(requested)
            precision = nodes.resolve_precision(sweep.precision, resources, capacity)
            nodes.check_storage(self._results.storage)
            token_hint = " (print its token with `ray get-auth-token`)" if dashboard_url else ""
            self._notify(f"Ray dashboard: {dashboard_url or 'not running'}{token_hint}")
            for note in capacity.notes(resources):
                self._notify(note)
            if address == "local":
                self._placement = _find_placement(sweep, resources, precision)
            deadline = time.monotonic() + sweep.time_budget_hours * 3600 if sweep.time_budget_hours else None
            storage = self._results.storage
            self._runner = TuneRunner(sweep, self._prepared, storage, resources, capacity, precision, deadline)
            yield

    def run(self, listener: TrialListener) -> PauseReason | None:
        """Run all unfinished trials; return why the launch was paused, or None if all trials ended.

        Raises:
            WorkError: if Ray Tune fails.
        """
        result = self._run_unfinished(listener, self._options.retry_failed)
        while result.deferred and not result.pause_reason:
            result = self._run_deferred(result.deferred, listener)
            self._results = find_results(self._sweep, self._results.storage)
            if not result.pause_reason and self._has_remaining():
                result = self._run_unfinished(listener, retry_failed=False)  # trials that failed alone stay failed
        return result.pause_reason or (None if result.all_finished else PauseReason.INTERRUPTED)

    def _run_unfinished(self, listener: TrialListener, retry_failed: bool) -> TuneResult:
        """Run the sweep's queue through Tune once, and keep the record of the sweep up to date."""
        storage = self._results.storage
        launches, past = _list_launches(storage), self._results.record or SweepRecord(self._sweep.name, [])
        suggester = self._build_suggester()
        queue = self._build_queue(past, launches, suggester, retry_failed)
        is_kept = self._rules == Rules.BEFORE_MEASURES or queue.delay is None
        begun = replace(
            past,
            launches=[*past.launches, self._build_launch_record(launches[-1])],
            objective=past.objective if is_kept else self._measure.name,
            rules=self._rules,
        )
        record = RecordWriter(self._sweep, self._results, queue, suggester, begun)
        queue.skip_finished()
        record.write()
        result = self._runner.run(launches, queue, listener, record.write, self._options.max_concurrent)
        if suggester:
            suggester.report_outcomes(queue.unreported())  # completes the study; nothing is suggested any more
        record.write(force_study=True)
        return result

    def _has_remaining(self) -> bool:
        """Return whether any trial is unfinished, or not suggested yet because it waited for results."""
        if any(not row.is_finished for row in self._results.rows):
            return True
        return count_unsuggested(self._sweep, self._results) > 0

    def _run_deferred(self, trials: Sequence[TrialConfig], listener: TrialListener) -> TuneResult:
        """Run trials that ran out of memory again, one at a time."""
        storage, remaining = self._results.storage, iter(trials)
        self._notify(f"{pluralize(len(trials), 'trial')} ran out of memory; running again, one at a time")
        launches = _list_launches(storage)
        rows = StoredRows(storage, launches)
        queue = TrialQueue(lambda outcomes: next(remaining, None), rows, max_trials=len(trials), delay=None)
        return self._runner.run(launches, queue, listener, exclusive=True)

    def _build_suggester(self) -> Suggester | None:
        if self._sweep.search is None:
            return None
        from raylm.tuning.search import Suggester  # imports Optuna

        return Suggester(self._sweep, self._measure, rules=self._rules)

    def _build_queue(
        self, past: SweepRecord, launches: Sequence[str], suggester: Suggester | None, retry_failed: bool
    ) -> TrialQueue:
        """Return the queue of all trials of the sweep."""
        sweep, corpora = self._sweep, self._prepared.corpora
        grid = iter([] if suggester else sweep.trials())

        def count_epoch_tokens(trial: TrialConfig) -> int:
            tokens = len(corpora[trial.corpus_key].train.tokens)
            return min(tokens, trial.max_train_tokens or tokens)

        return TrialQueue(
            suggester or (lambda outcomes: next(grid, None)),
            StoredRows(self._results.storage, launches, self._results.rows),
            max_trials=sweep.num_samples or len(self._results.rows),
            delay=self._resolve_delay(past),
            count_epoch_tokens=count_epoch_tokens if sweep.scheduler == "asha" else None,
            measure=self._measure,
            any_context=sweep.search is not None and self._rules >= Rules.ONE_BEST,
            retry_failed=retry_failed,
            history=QueueHistory([trial.id for trial in past.trials] if suggester else [], past.failed_ids),
        )

    def _resolve_delay(self, past: SweepRecord) -> int | None:
        """Return the number of places between a trial and the results that it depends on (`TrialQueue`).

        The value of the first launch holds for all launches, so that a sweep is the same whatever it is continued on:
        the number of concurrent trials there, twice, so that a long trial does not hold up the others.
        """
        if self._sweep.search is None and self._sweep.scheduler != "asha":
            return None
        num_concurrent = self._runner.count_concurrent_trials(self._options.max_concurrent)
        return past.delay or (num_concurrent if num_concurrent == 1 else 2 * num_concurrent)

    def _build_launch_record(self, launch_name: str) -> LaunchRecord:
        """Return the record of a launch that is about to start."""
        placement = self._placement
        return LaunchRecord(
            number=parse_launch_number(launch_name),
            sweep_id=self._sweep_id,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions={name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
            python=platform.python_version(),
            git_commit=_find_git_commit(),
            hardware=HardwareRecord(
                machine=platform.machine(),
                system=platform.platform(),
                cpus=allowed_cpus(),
                trials_on=placement.device.name if placement else None,
            ),
            precision=self._runner.precision,
            resources_per_trial=dict(self._runner.resources),
            slot=throughput.placement_to_record(placement) if placement else None,
            models=self._prepared.model_records(),
            data=self._prepared.data_records(),
        )


def _list_launches(storage: Storage) -> list[str]:
    """Return the names of the folders of all launches so far, and of the one that is about to start."""
    launches = list_launches(storage)
    return [*launches, next_launch_name(launches)]


def _find_objective(sweep: Sweep, prepared: PreparedInputs, results: SweepRows) -> tuple[Measure, Rules]:
    """Return the measure that a sweep's trials depend on, and the rules by which they are suggested.

    A search keeps those of its first launch. The order of a grid's rows within a dataset is the same in all measures.
    """
    data = index_data([*results.data.values(), *prepared.data_records()])
    record, keys = results.record, list(prepared.corpora)
    if record is None or not record.launches:
        return measures.choose_measure(keys, data), Rules.LATEST
    if record.objective is None:
        return measures.PER_WORD, Rules.BEFORE_MEASURES
    if sweep.search is not None:
        return measures.restore_measure(record.objective, keys, data), record.rules
    return measures.choose_measure(keys, data), record.rules


def _find_placement(sweep: Sweep, resources: Mapping[str, float], precision: str) -> Placement | None:
    """Return the device of a trial on this machine, for estimates of its time; None if it is not known."""
    is_auto, cpus = sweep.resources.gpus == "auto" and resources["gpu"] > 0, int(resources["cpu"])
    return throughput.find_placement(Resources(gpus="auto" if is_auto else resources["gpu"], cpus=cpus), precision)


def _find_git_commit() -> str | None:
    """Return the commit of the working directory's checkout, or None if it is not in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
