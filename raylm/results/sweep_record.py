"""sweep.json: the trials of a sweep and the environment of each of its launches."""

from __future__ import annotations

import enum
import functools
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import UserError, safe_repr
from raylm.results import json_files
from raylm.results.data_record import DataRecord as DataRecord
from raylm.results.json_files import DamagedFileError
from raylm.results.storage import Storage

RECORD_FILE = "sweep.json"
FORMAT_VERSION = 1


class Rules(enum.IntEnum):
    """Rules by which trials are suggested and stopped early; a sweep keeps those of its first launch."""

    BEFORE_MEASURES = 0
    """A diverged trial has a loss of 1000, and losses are compared per word."""
    MEASURES = 1
    """Losses are compared by the measure of the search; numbers to choose from have no order for the sampler."""
    ONE_BEST = 2
    """Numbers to choose from have an order, and early stopping in a search compares over context lengths."""
    LATEST = ONE_BEST


NO_TRIALS = '"trials": []'
"""Text of a record without trials, which no string in it can contain: quotation marks in strings are escaped."""
MAX_ENCODED_TRIALS = 16_384
"""Number of trials whose text is kept: more than a sweep has."""

Positive = Annotated[int, Meta(gt=0)] | Annotated[float, Meta(gt=0, le=sys.float_info.max)]
"""Finite number above zero; JSON has integers among the peaks of devices."""


@dataclass(frozen=True)
class DeviceRecord:
    """Device that trials of a launch ran on."""

    name: str
    bfloat16: Positive | None
    """Peak of matrix products in bfloat16, TFLOP/s; None if the device has no units for it."""
    float32: Positive
    """Peak of matrix products in float32, TFLOP/s."""
    gb_per_s: Positive
    """Memory bandwidth, GB/s."""
    gib: Positive
    """Memory, GiB."""
    device: Annotated[str, Meta(pattern="^(cpu|cuda)$")] = "cuda"
    """`cuda` or `cpu`."""
    float16: Positive | None = field(default=None, metadata={"omit_none": True})
    """Peak of matrix products in float16, TFLOP/s, of a GPU without bfloat16."""


@dataclass(frozen=True)
class SlotRecord:
    """Placement of a trial on its device."""

    card: DeviceRecord
    share: Positive
    """Devices per trial: a fraction of one, or a whole number."""
    at_a_time: Annotated[int, Meta(gt=0)]
    """Concurrent trials."""
    precision: Annotated[str, Meta(pattern="^(float32|bfloat16|float16)$")]
    """`float32`, `bfloat16` or `float16`."""
    most_sharing: int = 1
    """Maximum number of trials per device."""


@dataclass(frozen=True)
class HardwareRecord:
    """Machine that a launch was started on."""

    machine: str | None = None
    """Processor architecture."""
    system: str | None = None
    """Operating system with its version."""
    cpus: int | None = None
    """CPU cores."""
    trials_on: str | None = None
    """Name of the device that trials ran on; None if it is not known."""


@dataclass(frozen=True)
class ModelRecord:
    """Model that trials of a launch started from."""

    model: str
    pretrained: bool
    revision: str | None = None
    """Commit on the hub, or a hash of local files; None if the model has no files."""


@dataclass(frozen=True)
class LaunchRecord:
    """Everything that the numbers of a launch may depend on besides the configs of its trials."""

    number: int
    sweep_id: str | None = None
    """Identity of the results folder, equal in all launches; it stays when the folder is moved."""
    started: str | None = None
    """Start time in UTC, ISO 8601."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of raylm and the libraries it builds on."""
    python: str | None = None
    git_commit: str | None = None
    """Commit of the working directory's git checkout, if it is one."""
    hardware: HardwareRecord = field(default_factory=HardwareRecord)
    precision: str = "auto"
    """Precision of its trials: `float32`, `bfloat16` or `float16`; `auto` if each trial resolved it on its own GPU."""
    resources_per_trial: Mapping[str, int | float] = field(default_factory=dict)
    slot: SlotRecord | None = None
    """None if the device is not known, as on a cluster."""
    models: list[ModelRecord] = field(default_factory=list)
    data: list[DataRecord] = field(default_factory=list)


@dataclass(frozen=True)
class SweepRecord:
    """Content of sweep.json."""

    name: str
    """Name of the sweep."""
    trials: list[TrialConfig]
    """Trials in order: all of a grid, or those that a search has suggested so far."""
    search: str | None = None
    """Search algorithm; None for a grid."""
    failed_ids: frozenset[str] = frozenset()
    """Ids of trials whose failure was an input to later suggestions."""
    delay: int | None = None
    """Number of places before a trial whose outcomes it does not depend on; None if it depends on none."""
    exhausted: bool = False
    """True if the search has no more new trials to suggest."""
    launches: list[LaunchRecord] = field(default_factory=list)
    """Launches, oldest first."""
    objective: str | None = None
    """Measure that trials depend on (`measures.MEASURES`); None if they depend on none, or in versions before it."""
    rules: Rules = Rules.MEASURES
    """Rules by which trials are suggested and stopped; BEFORE_MEASURES is not recorded: it follows from `objective`."""

    @property
    def sweep_id(self) -> str | None:
        """Identity of the results folder, or None before its first launch."""
        return next((launch.sweep_id for launch in self.launches if launch.sweep_id), None)


@dataclass(frozen=True)
class _TrialEntry:
    """Trial as it is written in sweep.json."""

    config: dict[str, Any]
    id: str | None = None
    run: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class _Version:
    """Part of the file that every version of it has."""

    version: int


@dataclass(frozen=True)
class _RecordFile:
    """sweep.json of this version."""

    name: str
    trials: list[_TrialEntry]
    search: str | None = None
    lag: int | None = None
    objective: str | None = None
    rules: Annotated[int, Meta(ge=1)] = 1
    exhausted: bool = False
    launches: list[LaunchRecord] = field(default_factory=list)


def load(storage: Storage) -> SweepRecord | None:
    """Return the record of a results folder, or None if it has none yet.

    Raises:
        UserError: if sweep.json is damaged or of another version.
    """
    try:
        text = json_files.read_text(storage, RECORD_FILE)
        if text is None:
            return None
        version = json_files.decode(text, _Version).version
        if version == FORMAT_VERSION:
            content = json_files.decode(text, _RecordFile)
            if content.rules <= Rules.LATEST:
                return _parse(content)
    except (DamagedFileError, ValueError) as error:
        what = f"{storage.uri_of(RECORD_FILE)} is damaged ({error})"
        raise UserError(f"{what}; move it away and run the sweep again: no finished row is lost") from None
    what = f"{storage.uri_of(RECORD_FILE)} has version {version}, but this raylm reads version {FORMAT_VERSION}"
    if version == FORMAT_VERSION:
        known = f"this raylm knows those up to {Rules.LATEST:d}"
        what = f"{storage.uri_of(RECORD_FILE)} has rules {content.rules}, but {known}"
    raise UserError(f"{what}; use the raylm that wrote it")


def _parse(content: _RecordFile) -> SweepRecord:
    trials = [_parse_trial(entry.config) for entry in content.trials]
    failed = (trial.id for entry, trial in zip(content.trials, trials, strict=True) if entry.failed)
    return SweepRecord(
        name=content.name,
        trials=trials,
        search=content.search,
        failed_ids=frozenset(failed),
        delay=content.lag,
        objective=content.objective,
        rules=Rules(content.rules),
        exhausted=content.exhausted,
        launches=content.launches,
    )


def _parse_trial(data: Mapping[str, Any]) -> TrialConfig:
    """Return a recorded trial.

    Raises:
        ValueError: if a field has a value that no trial can have: its run name is used as the name of a folder.
    """
    trial = TrialConfig.from_record(data)
    for name, value in trial.as_dict().items():
        if not validation.is_valid_field(name, value):
            raise ValueError(f"a trial has {name} {safe_repr(value)}")
    return trial


def write(storage: Storage, record: SweepRecord) -> None:
    """Write the record into a results folder."""
    content = {
        "version": FORMAT_VERSION,
        "name": record.name,
        "trials": [],
        "search": record.search,
        "lag": record.delay,
        **({"objective": record.objective, "rules": int(record.rules)} if record.objective else {}),
        "exhausted": record.exhausted,
        "launches": record.launches,
    }
    text, trials = json_files.encode(content), [_encode_trial(t, t.id in record.failed_ids) for t in record.trials]
    if trials:
        text = text.replace(NO_TRIALS, NO_TRIALS.replace("[]", "[\n" + ",\n".join(trials) + "\n  ]"), 1)
    storage.write(RECORD_FILE, text)


@functools.lru_cache(maxsize=MAX_ENCODED_TRIALS)
def _encode_trial(trial: TrialConfig, failed: bool) -> str:
    """Return the text of a trial in sweep.json. A search writes the file with each trial that it adds."""
    entry = {"id": trial.id, "run": trial.run_name, "config": trial.as_record(), **({"failed": True} if failed else {})}
    return textwrap.indent(json_files.encode(entry), " " * 4)
