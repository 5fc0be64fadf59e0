"""Differences between sweeps that their numbers may come from: data, precision, versions, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from raylm.config.trial import TrialConfig
from raylm.results.rows import Row, SweepRows

LIBRARIES = ("raylm", "torch", "transformers", "tokenizers", "datasets")
"""Libraries that numbers may depend on."""


def describe_differences(sweeps: Sequence[SweepRows], labels: Sequence[str]) -> list[str]:
    """Return a note for each difference between sweeps, among the rows that have a loss in all of them.

    Unknown values, as in results of versions that did not record them, are no difference.
    """
    evaluated = [{row.config.id: row for row in results.rows if row.metrics is not None} for results in sweeps]
    shared = [row.config for row in evaluated[0].values() if all(row.config.id in rows for rows in evaluated[1:])]
    rows = [[own[config.id] for config in shared] for own in evaluated]
    notes = _describe_data(sweeps, labels, shared)
    precisions = [_collect(own, results.find_precision) for own, results in zip(rows, sweeps, strict=True)]
    notes += _describe(labels, precisions, "evaluated in", "which rounds differently")
    for library in LIBRARIES:
        versions = [_collect(own, _version_of(results, library)) for own, results in zip(rows, sweeps, strict=True)]
        notes += _describe(labels, versions, library)
    devices = [_collect(own, _device_of(results)) for own, results in zip(rows, sweeps, strict=True)]
    return [*notes, *_describe(labels, devices, "trained on")]


def _describe_data(sweeps: Sequence[SweepRows], labels: Sequence[str], shared: Sequence[TrialConfig]) -> list[str]:
    """Return a note for each dataset whose text or tokens differ."""
    notes = []
    for dataset in dict.fromkeys(config.dataset for config in shared):
        keys = dict.fromkeys(config.corpus_key for config in shared if config.dataset == dataset)
        for key in keys:
            records = [results.data.get(key) for results in sweeps]
            fingerprints = [record.fingerprint for record in records if record and record.fingerprint]
            if len(fingerprints) == len(sweeps) and len(set(fingerprints)) > 1:
                sizes = [
                    f"{label} {record.validation_tokens} validation tokens" if record else label
                    for label, record in zip(labels, records, strict=True)
                ]
                notes.append(f"data differ, so that losses do not compare: {dataset} ({', '.join(sizes)})")
                break
    return notes


def _collect(rows: Iterable[Row], find: Callable[[Row], str | None]) -> list[str]:
    """Return the different known values of rows."""
    return sorted({value for row in rows if (value := find(row))})


def _version_of(results: SweepRows, library: str) -> Callable[[Row], str | None]:
    def find(row: Row) -> str | None:
        launch = results.find_launch(row)
        return launch.versions.get(library) if launch else None

    return find


def _device_of(results: SweepRows) -> Callable[[Row], str | None]:
    def find(row: Row) -> str | None:
        launch = results.find_launch(row)
        return launch.hardware.trials_on if launch else None

    return find


def _describe(labels: Sequence[str], values: Sequence[Sequence[str]], subject: str, consequence: str = "") -> list[str]:
    """Return a note if sweeps with known values have different ones."""
    known = [(label, own) for label, own in zip(labels, values, strict=True) if own]
    if len({tuple(own) for _, own in known}) < 2:
        return []
    listed = "; ".join(f"{label}: {' and '.join(own)}" for label, own in known)
    return [f"{subject}: {listed}" + (f", {consequence}" if consequence else "")]
