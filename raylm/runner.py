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
from raylm.errors import Pause, UserError, WorkError, counted
from raylm.monitor.console import Screen
from raylm.monitor.trackers.dispatcher import Tracking
from raylm.planning.plan import plan_trial
from raylm.report import formats
from raylm.report.advice import advice
from raylm.report.analysis import SweepResults
from raylm.results import folder as results
from raylm.results import sweep_record
from raylm.results.open_storage import first_named, storage_at
from raylm.results.rows import DONE, FAILED, Results
from raylm.results.storage import Folder, Storage
from raylm.tuning.launch import How, launch

if TYPE_CHECKING:
    from raylm.tuning.prepare import Prepared


DEFAULT_STORAGE = "./runs"
"""Where results go if neither the command, nor the sweep, nor `$RAYLM_STORAGE` says."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    results: SweepResults
    """The rows as they stand now."""
    paused: Pause | None
    """Why trials are left that the same command would go on with, if there are."""

    @property
    def exit_code(self) -> int:
        """130 where it was interrupted, 1 where the disk is full, a row failed or none is done, else 0.

        A time budget that is used up is no failure, whatever it has sufficed for.
        """
        if self.paused in (Pause.INTERRUPTED, Pause.DISK_FULL):
            return 130 if self.paused is Pause.INTERRUPTED else 1
        failed = self.results.count(FAILED) or not (self.paused or self.results.count(DONE))
        return 1 if failed else 0


def run(sweep: Sweep, *, storage: str | None = None, how: How | None = None, screen: Screen | None = None) -> Outcome:
    """Runs what is missing of a sweep and shows its table.

    Args:
        storage: folder of the results folders, or a part of a bucket; None: the sweep's own.
        how: how to run it.
        screen: where to show it.

    Raises:
        UserError: for what the user can mend, before any trial starts.
        WorkError: if Ray gives up; the table is shown and what is done is kept.
    """
    how, screen = how or How(), screen or Screen()
    folder = results_folder(sweep, storage)
    found = results.standing(sweep, folder)
    unfinished = [r.config for r in found.rows if not r.ended or (how.retry_failed and r.status == FAILED)]
    left = len(unfinished) + _still_to_suggest(sweep, found)
    if not left:
        _record_anew(sweep, found)
        return _finish(found, screen, retried=how.retry_failed)
    folder.make()
    with folder.held():
        _announce(sweep, found, left, screen)
        identity = sweep_record.identity(folder) or secrets.token_hex(4)
        with Tracking(how.trackers, folder, identity, found.rows, screen.say) as tracked:  # clients load beside this
            prepared = _prepared(sweep, found, unfinished, left, screen)
            try:
                paused = launch(sweep, prepared, found, how, screen, tracked)
            except (WorkError, OSError):
                screen.table(results.standing(sweep, folder))
                raise
        found = results.standing(sweep, folder)
        results.prune(found)
    return _finish(found, screen, retried=how.retry_failed, paused=paused)


def _prepared(sweep: Sweep, found: Results, unfinished: list[TrialConfig], left: int, screen: Screen) -> Prepared:
    """What the trials share, and word of how much there is to train on.

    Raises:
        UserError: if a model or a dataset cannot be had, or the disk does not hold the checkpoints.
    """
    with screen.working("loading torch and transformers"):
        from raylm.tuning.prepare import prepare
    wanted = _to_prepare(sweep, found, unfinished)
    prepared = prepare(wanted, found, screen)
    for (dataset, model), corpus in prepared.corpora.items():
        sizes = [f"{name} {len(s.tokens):,} tokens, {s.words:,} words" for name, s in corpus.splits()]
        screen.say(f"{dataset} in {model}'s tokens: {'; '.join(sizes)}")
    if sweep.search is None:
        screen.say(_work(unfinished, prepared))
    _check_disk(unfinished or wanted, left, found.storage)
    return prepared


def _still_to_suggest(sweep: Sweep, found: Results) -> int:
    """How many trials a search has not suggested yet."""
    known = sweep_record.read(found.storage) if sweep.num_samples else None
    return 0 if sweep.num_samples is None or (known and known.exhausted) else sweep.num_samples - len(found.rows)


def _record_anew(sweep: Sweep, found: Results) -> None:
    """Writes down what the sweep's rows are now, if fewer or in another order than before."""
    known = sweep_record.read(found.storage)
    trials = [row.config for row in found.rows]
    if known is not None and sweep.search is None and known.trials != trials:
        sweep_record.write(found.storage, replace(known, trials=trials))


def _announce(sweep: Sweep, found: Results, left: int, screen: Screen) -> None:
    if sweep.search is None:
        repeated = sweep.points - len(found.rows)
        again = f" ({repeated} more named twice)" if repeated else ""
        screen.say(f"sweep {sweep.name}: {counted(len(found.rows), 'trial')}{again}, {left} to be done")
    else:
        trials = counted(sweep.num_samples or 0, "trial")
        screen.say(f"sweep {sweep.name}: {trials} by {sweep.searched_by}, {left} to be done")


def _to_prepare(sweep: Sweep, found: Results, unfinished: list[TrialConfig]) -> list[TrialConfig]:
    """The trials to be run, those that they are compared with, and what stands for those that a search may suggest."""
    if sweep.search is None:
        return unfinished if sweep.scheduler != "asha" else [row.config for row in found.rows]
    from raylm.tuning import search

    return [*[row.config for row in found.rows], *search.possible(sweep)]


def results_folder(sweep: Sweep, place: str | None) -> Storage:
    """Where a sweep's results are: in the place that is given, else in the sweep's own, else in `$RAYLM_STORAGE`.

    Raises:
        UserError: if that is no place for results.
    """
    given = os.environ.get("RAYLM_STORAGE")
    named = first_named(("--storage", place), ("storage", sweep.storage), ("RAYLM_STORAGE", given))
    return (named or storage_at(DEFAULT_STORAGE)).inside(sweep.name)


def _finish(found: Results, screen: Screen, *, retried: bool, paused: Pause | None = None) -> Outcome:
    """Shows the table, and writes the results' files where the rows have changed."""
    screen.table(found)
    screen.say(formats.summary(found))
    for text in advice(found):
        screen.say(f"next: {text}")
    if formats.write(found) or "report.html" not in found.storage.entries(deep=False):
        with screen.working("drawing the report"):
            from raylm.report import html

            html.write(found)
    for place in formats.places(found):
        screen.say(place)
    if paused:
        screen.say(f"{paused}: the same command goes on from here")
    elif found.count(FAILED) and not retried:
        screen.say("--retry-failed begins the failed rows again")
    return Outcome(SweepResults.of(found), paused)


# ---- before any trial ---------------------------------------------------------------------------------------------


def _check_disk(trials: Sequence[TrialConfig], left: int, folder: Storage) -> None:
    """Checkpoints must fit: of each trial what is kept, and of one trial one being written there and one on its way.

    Raises:
        UserError: if they do not.
    """
    sizes = [one.checkpoint_bytes or 0 for one in (plan_trial(trial, 1) for trial in trials)]
    largest = max(sizes)
    kept = sum(sizes) if left <= len(sizes) else largest * left
    temporary = Folder(Path(tempfile.gettempdir()))
    for place, need, named_by in ((folder, kept + largest, "--storage"), (temporary, largest, "TMPDIR")):
        free = place.free_bytes()
        if free is not None and need > free:
            raise UserError(
                f"the checkpoints of {counted(left, 'trial')} need {need / 2**30:.1f} GiB in {place.place}, where "
                f"{free / 2**30:.1f} GiB are free; free some space, choose another place with {named_by}, "
                "or run fewer trials"
            )


def _work(trials: Sequence[TrialConfig], prepared: Prepared) -> str:
    """What is going to run, in a line."""
    sizes = [len(prepared.corpora[trial.dataset, trial.model].train.tokens) for trial in trials]
    planned = [plan_trial(trial, size) for trial, size in zip(trials, sizes, strict=True)]
    tokens, steps = sum(one.tokens for one in planned), sum(one.steps for one in planned)
    return f"to train on: {tokens:,} tokens in {steps:,} optimizer steps"
