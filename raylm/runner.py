"""Run a sweep: prepare its inputs, launch its unfinished trials, show and write its table."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raylm.config.catalog import MODELS
from raylm.config.options import RunOptions
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason, UserError, describe_os_error
from raylm.events import Listeners, TrialListener
from raylm.files import WORKING_FOLDER_GONE, is_working_folder_gone
from raylm.monitor.console import Console
from raylm.monitor.state import SweepMonitor
from raylm.monitor.trackers.dispatcher import TrackerPool
from raylm.monitor.trackers.options import TrackerOptions, resolve
from raylm.planning import plan, totals
from raylm.planning.disk_space import check_disk_space
from raylm.report import formats
from raylm.report.advice import build_advice
from raylm.report.analysis import Results
from raylm.report.loader import ReportLoader
from raylm.results import folder as results_folder
from raylm.results import sweep_record
from raylm.results.heartbeat import Heartbeat
from raylm.results.lock import lock
from raylm.results.open_storage import resolve_storage
from raylm.results.rows import DONE, FAILED, SweepRows
from raylm.results.storage import Storage
from raylm.stages import mark_stage

if TYPE_CHECKING:
    from raylm.tuning.prepare import PreparedInputs


@dataclass(frozen=True)
class RunResult:
    """Result of `run`."""

    results: Results
    """Rows of the sweep after the run."""
    pause_reason: PauseReason | None
    """Reason for which trials are left unfinished; None if the run was not paused."""
    unwritten: tuple[str, ...] = ()
    """Problems with files that are missing after the trials of this run, such as results.csv; the rows are saved."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 130 if interrupted, 1 if a row failed, none is done, or a file is missing, else 0.

        A used-up time budget is no failure, even if no row is done.
        """
        if self.pause_reason not in (None, PauseReason.BUDGET_USED):
            return 130 if self.pause_reason is PauseReason.INTERRUPTED else 1
        failed = self.unwritten or self.results.count(FAILED) or not (self.pause_reason or self.results.count(DONE))
        return 1 if failed else 0


def run(
    sweep: Sweep,
    *,
    storage: str | None = None,
    retry_failed: bool = False,
    max_concurrent: int | None = None,
    address: str | None = None,
    wait_for_workers: bool = False,
    trackers: TrackerOptions | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> RunResult:
    """Run the unfinished trials of a sweep, then show and write its table.

    Running the same sweep again resumes it: finished trials are skipped, interrupted ones continue from their latest
    checkpoints.

    Args:
        storage: parent of the results folder, a directory or a bucket (`s3://bucket/path`); None: `sweep.storage`, else
            `$RAYLM_STORAGE`, else `./runs`.
        retry_failed: run failed trials again, from their latest checkpoints.
        max_concurrent: maximum number of concurrent trials; None: limited by the resources only.
        address: address of a Ray cluster, or `local` to start Ray on this machine; None: `$RAY_ADDRESS`, else the
            cluster that this machine is a node of, else `local`.
        wait_for_workers: let trials wait for nodes that will join the cluster, which its autoscaler does not tell of.
        trackers: experiment trackers to log to; None: W&B if this machine is logged in, and TensorBoard.
        quiet: print the table only.
        verbose: also show Ray's log messages.

    Returns:
        The rows of the sweep, and the reason if the run was paused before all trials ended.

    Raises:
        UserError: if the sweep, its data or the cluster have a problem that the user can fix; no trial has started.
        WorkError: if Ray fails. The table is shown, and everything saved so far is kept.
    """
    options = RunOptions(retry_failed, max_concurrent, address, wait_for_workers, verbose)
    if is_working_folder_gone():
        raise UserError(WORKING_FOLDER_GONE)  # Ray, trackers and trials have paths relative to it
    console = Console(quiet=quiet, keeps_working=True)
    return _Run(sweep, resolve_storage(sweep, storage), options, trackers or resolve(), console).execute()


class _Run:
    """One run of a sweep, with the phases as methods."""

    def __init__(
        self, sweep: Sweep, storage: Storage, options: RunOptions, trackers: TrackerOptions, console: Console
    ) -> None:
        self._sweep, self._storage, self._options = sweep, storage, options
        self._trackers, self._console = trackers, console
        self._has_started = False
        self._unwritten: list[str] = []
        self._is_table_shown = self._has_changed = False
        self._load(results_folder.find_results(sweep, storage))

    def _load(self, results: SweepRows) -> None:
        """Set the rows before the launch, and the trials that are left to run."""
        retried = [FAILED] if self._options.retry_failed else []
        self._results = results
        self._unfinished = [row.config for row in results.rows if not row.is_finished or row.status in retried]
        self._num_remaining = len(self._unfinished) + results_folder.count_unsuggested(self._sweep, results)

    def execute(self) -> RunResult:
        """Run what is unfinished, then report; raise a UserError if no trial could start."""
        try:
            return self._execute()
        except OSError as error:
            if self._has_started:
                raise
            raise UserError(f"no trial was started: {describe_os_error(error)}") from error

    def _execute(self) -> RunResult:
        if not self._num_remaining:
            with self._note_unwritten("sweep.json"):
                self._update_record()
            return self._report(None)
        self._storage.create()
        with lock(self._storage) as heartbeat:
            if sweep_record.load(self._storage) != self._results.record:  # another command has run the sweep since
                self._load(results_folder.find_results(self._sweep, self._storage))
            if not self._num_remaining:
                return self._report(None)
            self._console.print_note(totals.describe_trials(self._sweep, len(self._results.rows), self._num_remaining))
            self._print_plan()
            try:
                pause_reason = self._launch(heartbeat)
            except Exception:  # of any class
                if self._has_started and sweep_record.load(self._storage):  # which may have been removed
                    self._results = results_folder.find_results(self._sweep, self._storage)
                    self._report(None)
                raise
            with self._note_unwritten("removing superseded checkpoints"):
                results_folder.prune_checkpoints(self._results)
        return self._report(pause_reason)

    # ---- before the launch ----------------------------------------------------------------------------------------

    def _update_record(self) -> None:
        """Write the grid's current trials into sweep.json if it has others."""
        record, trials = self._results.record, [row.config for row in self._results.rows]
        if record is not None and self._sweep.search is None and record.trials != trials:
            sweep_record.write(self._storage, replace(record, trials=trials))

    def _print_plan(self) -> None:
        is_here = self._options.address in (None, "local") and not os.environ.get("RAY_ADDRESS")
        with self._console.show_spinner("estimating time and memory"):
            lines = totals.describe_launch(self._sweep, self._unfinished, self._num_remaining, is_here=is_here)
        self._is_planned = not any(totals.UNKNOWN in line for line in lines)
        for line in lines:
            self._console.print_note(line)

    def _prepare(self) -> PreparedInputs:
        """Return the inputs of the trials, and show how much there is to train on.

        Raises:
            UserError: if a model or a dataset is not available, or the disk cannot hold the checkpoints.
        """
        console = self._console
        with console.show_spinner("loading Ray"):
            from raylm.tuning.connection.session import check_start
            from raylm.tuning.prepare import prepare_inputs
        check_start(self._options, self._sweep.resources.cpus)  # datasets may take long to prepare
        trials = self._representative_trials()
        prepared = prepare_inputs(trials, self._results, console.print_note, console.show_spinner)
        for (spec, model), corpus in prepared.corpora.items():
            splits = [f"{name} {len(s.tokens):,} tokens, {s.num_words:,} words" for name, s in corpus.splits()]
            console.print_note(f"{spec} in {model}'s tokens: {'; '.join(splits)}")
        if self._sweep.search is None:
            corpora = [prepared.corpora[trial.corpus_key] for trial in self._unfinished]
            console.print_note(totals.format_work(self._unfinished, [len(c.train.tokens) for c in corpora]))
        if not self._is_planned:  # the sizes of the datasets are known now
            self._print_plan()
        check_disk_space(self._unfinished or trials, self._num_remaining, self._storage)
        mark_stage("inputs prepared")
        return prepared

    def _representative_trials(self) -> list[TrialConfig]:
        """Return the trials whose inputs are needed: also those compared with, and substitutes for suggestions."""
        sweep, rows = self._sweep, self._results.rows
        if sweep.search is None:
            return self._unfinished if sweep.scheduler != "asha" else [row.config for row in rows]
        from raylm.tuning.sampling import points

        return [*[row.config for row in rows], *points.representative_trials(sweep)]

    # ---- the launch -----------------------------------------------------------------------------------------------

    def _launch(self, heartbeat: Heartbeat) -> PauseReason | None:
        """Run the unfinished trials; return why they were paused, or None."""
        console, record = self._console, self._results.record
        sweep_id = (record and record.sweep_id) or secrets.token_hex(4)
        with TrackerPool(self._trackers, self._storage, sweep_id, self._results.rows, console.print_note) as trackers:
            prepared = self._prepare()  # tracker clients load meanwhile
            with contextlib.ExitStack() as connection:
                with console.show_spinner("starting Ray"):
                    from raylm.tuning.launch import Launch

                    launch = Launch(self._sweep, prepared, self._results, self._options, sweep_id, console.print_note)
                    connection.enter_context(launch.connect())
                with self._open_listeners(prepared, trackers, heartbeat) as listener:
                    self._has_started = True
                    pause_reason = launch.run(listener)
                trackers.close()  # trackers finish while the table is printed and Ray stops
                self._results = results_folder.find_results(self._sweep, self._storage)
                self._show_table()
        return pause_reason

    @contextlib.contextmanager
    def _open_listeners(
        self, prepared: PreparedInputs, trackers: TrackerPool, heartbeat: Heartbeat
    ) -> Iterator[TrialListener]:
        """Yield the listeners of a launch; the monitor comes first, because the others read it."""
        count_flops = functools.partial(_estimate_flops, prepared=prepared)
        sweep, results = self._sweep, self._results
        num_trials, retry = sweep.num_samples or len(results.rows), self._options.retry_failed
        measures = results.measures_with(prepared.data_records())
        monitor = SweepMonitor(sweep.name, results, num_trials, count_flops, retry_failed=retry, measures=measures)
        heartbeat.report(monitor.snapshot)
        with self._console.show_progress(monitor) as view:
            yield Listeners([monitor, view, trackers, ReportLoader()])

    # ---- after the launch -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _note_unwritten(self, what: str) -> Iterator[None]:
        """Keep an error of the system for the end, so that nothing else remains undone because of it."""
        try:
            yield
        except OSError as error:
            self._unwritten.append(f"{what}: {describe_os_error(error)}")

    def _show_table(self) -> None:
        """Write the tables' files if rows have changed, and print the table and what it says."""
        results, console = self._results, self._console
        with self._note_unwritten("results.md and results.csv are not up to date"):
            self._has_changed = formats.write_tables(results)
        console.print_table(results)
        console.print_note(formats.format_summary(results))
        for text in build_advice(results):
            console.print_note(f"next: {text}")
        self._is_table_shown = True
        mark_stage("table printed")

    def _report(self, pause_reason: PauseReason | None) -> RunResult:
        """Show the table unless it is on the screen, and draw the report if rows have changed."""
        results, console = self._results, self._console
        if not self._is_table_shown:
            self._show_table()
        if self._has_changed or "report.html" not in results.storage.list_entries(recursive=False):
            with console.show_spinner("drawing the report"):
                from raylm.report import html

                with self._note_unwritten("report.html is not up to date"):
                    html.write_html(results)
            mark_stage("report drawn")
        for output in formats.list_outputs(results):
            console.print_note(output)
        if pause_reason:
            console.print_note(f"{pause_reason}: {pause_reason.next_step}")
        elif results.count(FAILED) and not self._options.retry_failed:
            console.print_note("run with --retry-failed to run the failed rows again")
        for problem in self._unwritten:
            console.print_error(problem)
        unwritten = tuple(self._unwritten) if self._has_started else ()
        return RunResult(Results.from_rows(results), pause_reason, unwritten)


def _estimate_flops(trial: TrialConfig, prepared: PreparedInputs) -> float:
    """Return the training FLOPs of a trial: for a model of unknown shape those of gpt2, for unknown data 0."""
    corpus = prepared.corpora.get(trial.corpus_key)
    planned = plan.plan_trial(trial, len(corpus.train.tokens)) if corpus else plan.plan_trials([trial])[0]
    if planned is None:
        return 0.0
    return planned.flops or planned.tokens * MODELS["gpt2"].shape.training_flops_per_token(trial.context_length)
