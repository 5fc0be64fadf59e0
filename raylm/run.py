"""The one job: from a sweep to its table, doing only what is missing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm import checks, manifest, record, report, results
from raylm.config import Sweep
from raylm.console import Screen
from raylm.errors import SweepError, UserError, WorkError, counted
from raylm.plan import plan_trial
from raylm.results import Results

if TYPE_CHECKING:
    from raylm.prepare import Prepared

RECORDED_VERSIONS = ("raylm", "ray", "torch", "transformers", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    results: Results
    """The rows as they stand now."""
    interrupted: bool
    """Whether trials are left that the same command would go on with."""

    @property
    def exit_code(self) -> int:
        """130 where it was interrupted, 1 where a row failed or none is done, else 0."""
        if self.interrupted:
            return 130
        failed = self.results.count(results.FAILED) or not self.results.count(results.DONE)
        return 1 if failed else 0


def run(
    sweep: Sweep,
    *,
    storage: str | None = None,
    max_concurrent: int | None = None,
    retry_failed: bool = False,
    address: str | None = None,
    screen: Screen | None = None,
    verbose: bool = False,
) -> Outcome:
    """Runs what is missing of a sweep and shows its table.

    Args:
        storage: folder of the results folders; None: the sweep's own.
        max_concurrent: trials at a time; None: as many as the resources allow.
        retry_failed: begin failed rows again.
        address: of a Ray cluster; None: one that runs on this machine, else Ray is started.
        screen: where to show it.
        verbose: show Ray's own messages.

    Raises:
        UserError: for what the user can mend, before any trial starts.
        WorkError: if Ray gives up; the table is shown and what is done is kept.
    """
    screen = screen or Screen()
    folder = results_folder(sweep, storage)
    found = results.find_rows(folder, sweep.trials())
    missing = [row.config for row in found.rows if not row.ended or (retry_failed and row.status == results.FAILED)]
    if not missing:
        known = record.read(folder)
        if known is not None and not record.is_of(known, sweep):
            record.write(folder, sweep, known["launches"])
        return _finish(found, screen, interrupted=False, retried=retry_failed)
    _make_folder(folder)
    with _only_one(folder):
        repeated = sweep.points - len(found.rows)
        again = f" ({repeated} more named twice)" if repeated else ""
        screen.say(f"sweep {sweep.name}: {counted(len(found.rows), 'trial')}{again}, {len(missing)} to be done")
        with screen.working("loading torch and transformers"):
            from raylm.prepare import prepare
        prepared = prepare(missing, folder, screen)
        for (dataset, model), corpus in prepared.corpora.items():
            sizes = [f"{name} {len(s.tokens):,} tokens, {s.words:,} words" for name, s in corpus.splits()]
            screen.say(f"{dataset} in {model}'s tokens: {'; '.join(sizes)}")
        screen.say(_work(prepared))
        complete = _launched(sweep, prepared, folder, max_concurrent, address, screen, verbose)
        found = results.find_rows(folder, sweep.trials())
        results.prune(found)
    return _finish(found, screen, interrupted=not complete, retried=retry_failed)


def results_folder(sweep: Sweep, storage: str | None) -> Path:
    """Where a sweep's results are."""
    place = storage or sweep.storage
    if problem := checks.storage(place):
        raise SweepError([replace(problem, where="--storage")], "the command line")
    return Path(place).expanduser().resolve() / sweep.name


def _finish(found: Results, screen: Screen, *, interrupted: bool, retried: bool) -> Outcome:
    """Writes the results' files, where the rows have changed, and shows the table."""
    if report.write(found) or not (found.folder / "report.html").exists():
        with screen.working("drawing the report"):
            from raylm import page

            page.write(found)
    screen.table(found)
    screen.say(report.summary(found))
    screen.say(f"results: {found.folder}/report.html, results.md, results.csv")
    for dataset, row in found.best.items():
        if row.best is not None:
            screen.say(f"best checkpoint on {dataset}: {row.best.folder}")
    outcome = Outcome(found, interrupted or not all(row.ended for row in found.rows))
    if outcome.interrupted:
        screen.say("interrupted: the same command goes on from here")
    elif found.count(results.FAILED) and not retried:
        screen.say("--retry-failed begins the failed rows again")
    return outcome


# ---- before any trial ---------------------------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"results cannot be written to {folder}: {error.strerror}; choose another place with --storage"
        ) from None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a second command away from a results folder."""
    from filelock import FileLock, Timeout

    holder = folder / ".running"
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise UserError(f"{folder} is in use by {who}; wait for it, or choose another place with --storage") from None
    with lock:
        holder.write_text(f"process {os.getpid()} on {platform.node()} since {_now()}")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _work(prepared: Prepared) -> str:
    """What is going to run, in a line."""
    sizes = [len(prepared.corpora[trial.dataset, trial.model].train.tokens) for trial in prepared.trials]
    planned = [plan_trial(trial, size) for trial, size in zip(prepared.trials, sizes, strict=True)]
    tokens, steps = sum(one.tokens for one in planned), sum(one.steps for one in planned)
    return f"to train on: {tokens:,} tokens in {steps:,} optimizer steps"


# ---- the launch ---------------------------------------------------------------------------------------------------


def _launched(
    sweep: Sweep,
    prepared: Prepared,
    folder: Path,
    max_concurrent: int | None,
    address: str | None,
    screen: Screen,
    verbose: bool,
) -> bool:
    """One launch through Ray; says whether it came to its end. If Ray gives up, the table is shown all the same."""
    with screen.working("starting Ray"):
        from raylm import tuner
    try:
        with tuner.started_ray(address, verbose) as dashboard:
            resources = tuner.resolved_resources(sweep.resources)
            screen.say(
                f"dashboard: {dashboard} (its token: ray get-auth-token)" if dashboard else "dashboard: not running"
            )
            number = max(map(results.launch_number, results.launches(folder)), default=0) + 1
            past = record.launches(folder)
            record.write(folder, sweep, [*past, _launch_record(sweep, prepared, number, resources)])
            launch = folder / f"launch-{number:03d}"
            with screen.live(len(prepared.trials)) as live:
                return tuner.launch(sweep, prepared, launch, resources, max_concurrent, live)
    except WorkError:
        _finish(results.find_rows(folder, sweep.trials()), screen, interrupted=False, retried=False)
        raise


def _launch_record(sweep: Sweep, prepared: Prepared, number: int, resources: Mapping[str, float]) -> dict[str, Any]:
    """What a launch runs with: all that its numbers could depend on besides the trials' configs."""
    return {
        "number": number,
        "started": _now(),
        "versions": {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()},
        "precision": sweep.precision,
        "resources_per_trial": dict(resources),
        "models": prepared.models_used(),
        "data": prepared.data_used(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that the command was given in, if it was in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
