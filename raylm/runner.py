"""The one job: from a sweep to its table, doing only what is missing."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason, UserError, WorkError
from raylm.monitor.console import Console
from raylm.monitor.trackers.dispatcher import TrackerPool
from raylm.planning.plan import plan_trial
from raylm.report import formats
from raylm.report.advice import build_advice
from raylm.report.analysis import Results
from raylm.results import folder as results
from raylm.results import sweep_record
from raylm.results.lock import lock
from raylm.results.open_storage import open_first_given, open_storage
from raylm.results.rows import DONE, FAILED, SweepRows
from raylm.results.storage import Folder, Storage
from raylm.tuning.launch import RunOptions, run_launch
from raylm.units import GIB, pluralize

if TYPE_CHECKING:
    from raylm.tuning.prepare import PreparedInputs


DEFAULT_STORAGE = "./runs"
"""Where results go if neither the command, nor the sweep, nor `$RAYLM_STORAGE` says."""


@dataclass(frozen=True)
class RunResult:
    """How a command ended."""

    results: Results
    """The rows as they stand now."""
    pause_reason: PauseReason | None
    """Why trials are left that the same command would go on with, if there are."""

    @property
    def exit_code(self) -> int:
        """130 where it was interrupted, 1 where the disk is full, a row failed or none is done, else 0.

        A time budget that is used up is no failure, whatever it has sufficed for.
        """
        if self.pause_reason in (PauseReason.INTERRUPTED, PauseReason.DISK_FULL):
            return 130 if self.pause_reason is PauseReason.INTERRUPTED else 1
        failed = self.results.count(FAILED) or not (self.pause_reason or self.results.count(DONE))
        return 1 if failed else 0


def run(
    sweep: Sweep, *, storage: str | None = None, options: RunOptions | None = None, console: Console | None = None
) -> RunResult:
    """Runs what is missing of a sweep and shows its table.

    Args:
        storage: folder of the results folders, or a part of a bucket; None: the sweep's own.
        how: how to run it.
        screen: where to show it.

    Raises:
        UserError: for what the user can mend, before any trial starts.
        WorkError: if Ray gives up; the table is shown and what is done is kept.
    """
    options, console = options or RunOptions(), console or Console()
    folder = resolve_storage(sweep, storage)
    found = results.find_results(sweep, folder)
    unfinished, left = _find_unfinished(sweep, found, options)
    if not left:
        _update_record(sweep, found)
        return _finish(found, console, retried=options.retry_failed)
    folder.create()
    with lock(folder) as heartbeat:
        if sweep_record.load(folder) != found.record:  # another command has run it since
            found = results.find_results(sweep, folder)
            unfinished, left = _find_unfinished(sweep, found, options)
        if not left:
            return _finish(found, console, retried=options.retry_failed)
        _print_summary(sweep, found, left, console)
        identity = (found.record and found.record.sweep_id) or secrets.token_hex(4)
        with TrackerPool(
            options.trackers, folder, identity, found.rows, console.print_note
        ) as tracked:  # clients load beside this
            prepared = _prepare(sweep, found, unfinished, left, console)
            try:
                paused = run_launch(sweep, prepared, found, options, console, tracked, heartbeat)
            except (WorkError, OSError):
                console.print_table(results.find_results(sweep, folder))
                raise
        found = results.find_results(sweep, folder)
        results.prune_checkpoints(found)
    return _finish(found, console, retried=options.retry_failed, pause_reason=paused)


def _prepare(
    sweep: Sweep, results: SweepRows, unfinished: list[TrialConfig], remaining: int, console: Console
) -> PreparedInputs:
    """What the trials share, and word of how much there is to train on.

    Raises:
        UserError: if a model or a dataset cannot be had, or the disk does not hold the checkpoints.
    """
    with console.show_spinner("loading torch and transformers"):
        from raylm.tuning.prepare import prepare_inputs
    wanted = _select_trials_to_prepare(sweep, results, unfinished)
    prepared = prepare_inputs(wanted, results, console)
    for (dataset, model), corpus in prepared.corpora.items():
        sizes = [f"{name} {len(s.tokens):,} tokens, {s.num_words:,} words" for name, s in corpus.splits()]
        console.print_note(f"{dataset} in {model}'s tokens: {'; '.join(sizes)}")
    if sweep.search is None:
        console.print_note(_format_work(unfinished, prepared))
    _check_disk_space(unfinished or wanted, remaining, results.storage)
    return prepared


def _find_unfinished(sweep: Sweep, results: SweepRows, options: RunOptions) -> tuple[list[TrialConfig], int]:
    """Return the trials that are to be run, and their number with those that a search has not suggested yet."""
    retried = [FAILED] if options.retry_failed else []
    unfinished = [row.config for row in results.rows if not row.is_finished or row.status in retried]
    return unfinished, len(unfinished) + _count_unsuggested(sweep, results)


def _count_unsuggested(sweep: Sweep, results: SweepRows) -> int:
    """How many trials a search has not suggested yet."""
    exhausted = results.record is not None and results.record.exhausted
    return 0 if sweep.num_samples is None or exhausted else sweep.num_samples - len(results.rows)


def _update_record(sweep: Sweep, results: SweepRows) -> None:
    """Writes down what the sweep's rows are now, if fewer or in another order than before."""
    trials = [row.config for row in results.rows]
    if results.record is not None and sweep.search is None and results.record.trials != trials:
        sweep_record.write(results.storage, replace(results.record, trials=trials))


def _print_summary(sweep: Sweep, results: SweepRows, remaining: int, console: Console) -> None:
    if sweep.search is None:
        repeated = sweep.grid_size - len(results.rows)
        again = f" ({repeated} more named twice)" if repeated else ""
        console.print_note(
            f"sweep {sweep.name}: {pluralize(len(results.rows), 'trial')}{again}, {remaining} to be done"
        )
    else:
        trials = pluralize(sweep.num_samples or 0, "trial")
        console.print_note(f"sweep {sweep.name}: {trials} by {sweep.search_name}, {remaining} to be done")


def _select_trials_to_prepare(sweep: Sweep, results: SweepRows, unfinished: list[TrialConfig]) -> list[TrialConfig]:
    """The trials to be run, those that they are compared with, and what stands for those that a search may suggest."""
    if sweep.search is None:
        return unfinished if sweep.scheduler != "asha" else [row.config for row in results.rows]
    from raylm.tuning import search

    return [*[row.config for row in results.rows], *search.representative_trials(sweep)]


def resolve_storage(sweep: Sweep, uri: str | None) -> Storage:
    """Where a sweep's results are: in the place that is given, else in the sweep's own, else in `$RAYLM_STORAGE`.

    Raises:
        UserError: if that is no place for results.
    """
    given = os.environ.get("RAYLM_STORAGE")
    named = open_first_given(("--storage", uri), ("storage", sweep.storage), ("RAYLM_STORAGE", given))
    return (named or open_storage(DEFAULT_STORAGE)).subfolder(sweep.name)


def _finish(
    results: SweepRows, console: Console, *, retried: bool, pause_reason: PauseReason | None = None
) -> RunResult:
    """Shows the table, and writes the results' files where the rows have changed."""
    console.print_table(results)
    console.print_note(formats.format_summary(results))
    for text in build_advice(results):
        console.print_note(f"next: {text}")
    if formats.write_tables(results) or "report.html" not in results.storage.list_entries(recursive=False):
        with console.show_spinner("drawing the report"):
            from raylm.report import html

            html.write_html(results)
    for place in formats.list_outputs(results):
        console.print_note(place)
    if pause_reason:
        console.print_note(f"{pause_reason}: the same command goes on from here")
    elif results.count(FAILED) and not retried:
        console.print_note("--retry-failed begins the failed rows again")
    return RunResult(Results.from_rows(results), pause_reason)


# ---- before any trial ---------------------------------------------------------------------------------------------


def _check_disk_space(trials: Sequence[TrialConfig], remaining: int, storage: Storage) -> None:
    """Checkpoints must fit: of each trial what is kept, and of one trial one being written there and one on its way.

    Raises:
        UserError: if they do not.
    """
    sizes = [one.checkpoint_bytes or 0 for one in (plan_trial(trial, 1) for trial in trials)]
    largest = max(sizes)
    kept = sum(sizes) if remaining <= len(sizes) else largest * remaining
    temporary = Folder(Path(tempfile.gettempdir()))
    for place, need, named_by in ((storage, kept + largest, "--storage"), (temporary, largest, "TMPDIR")):
        free = place.free_bytes()
        if free is not None and need > free:
            raise UserError(
                f"the checkpoints of {pluralize(remaining, 'trial')} need {need / GIB:.1f} GiB in {place.uri}, where "
                f"{free / GIB:.1f} GiB are free; free some space, choose another place with {named_by}, "
                "or run fewer trials"
            )


def _format_work(trials: Sequence[TrialConfig], prepared: PreparedInputs) -> str:
    """What is going to run, in a line."""
    sizes = [len(prepared.corpora[trial.dataset, trial.model].train.tokens) for trial in trials]
    planned = [plan_trial(trial, size) for trial, size in zip(trials, sizes, strict=True)]
    tokens, steps = sum(one.tokens for one in planned), sum(one.steps for one in planned)
    return f"to train on: {tokens:,} tokens in {steps:,} optimizer steps"
