"""report.html: a results folder as one page that needs nothing else, for a browser, for a phone, for paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from matplotlib.figure import Figure

from raylm.config.sweep_file import sweep_file
from raylm.errors import plain
from raylm.report import figures, formats, plots
from raylm.report.advice import advice
from raylm.report.importance import importances
from raylm.report.reference import Reference, load_reference
from raylm.report.table import GOING_UP, build, lines, ordered
from raylm.results import sweep_record
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, MISSING, RUNNING, WAITING, Results

NAME = "report.html"
WORDS = ("dataset", "model", "run")
"""Columns of the table that hold no numbers."""

NEXT_RUN = {INTERRUPTED: "the next run goes on from its last checkpoint", MISSING: "the next run begins it"}
"""What to say of a row that has no reason of its own."""

DEFINITIONS = {
    "train loss": "training loss summed over the epoch, divided by its tokens: nats per token; each batch is measured "
    "before its own step",
    "val loss": "negative log-likelihood of the validation split, divided by its tokens, each counted once: nats per "
    "token",
    "adj val loss": "val loss × tokens / words of the validation split: nats per word of the original text, "
    "which alone compares between tokenizers",
    "best epoch": "the epoch, counted from 1, with the lowest val loss; a row's numbers are those of its best epoch",
    "context len": "positions of a window, in tokens",
    "batch size": "windows per optimizer step, whatever the device's memory makes of them",
    GOING_UP: "the training loss at the end is higher than its minimum by more than noise",
    "val at": "val loss of the best checkpoint with windows of so many tokens",
    "n, ±": "finished seeds; and half the width of the 95 % interval of their mean, by Student's t",
    "ref, diff": "the loss in the reference table, and this table's minus it",
    "training time": "time in optimizer steps, without evaluations and checkpoints",
    "tokens per second": "training tokens divided by the training time",
    DIVERGED: "a loss was not finite: the trial has ended and is not ranked",
}
ONLY_WITH = {"val at": "val at", "n, ±": "n", "ref, diff": "ref"}
"""Definitions that only some tables need, with how a column of these begins."""


@dataclass(frozen=True)
class Drawing:
    """A panel, ready for the page."""

    source: str
    """An SVG as a `data:` address."""
    description: str
    """For those who cannot see it."""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A figure of one or more panels."""

    title: str
    caption: str
    drawings: tuple[Drawing, ...]

    @property
    def narrow(self) -> bool:
        """Whether another section has room beside it."""
        return len(self.drawings) == 1 and not self.drawings[0].wide


def write(results: Results, reference: Reference | None = None) -> str:
    """Writes report.html into the results folder, if it says something else than before; says where it is.

    Args:
        reference: to stand beside; None: the one that comes with raylm.
    """
    text = html(results, reference or load_reference())
    if not results.storage.says(NAME, text):
        results.storage.write(NAME, text)
    return results.storage.where(NAME)


def html(results: Results, reference: Reference | None = None, template: str = "report.html", **more: object) -> str:
    """The page; the same text for the same folder.

    Args:
        template: the report's, or one that extends it.
        more: what that takes besides.
    """
    kept = sweep_record.read(results.storage) or sweep_record.Record(results.storage.name, [])
    made = build(results, reference)
    best = {row.config.id for row in results.best_by_dataset.values()}
    return rendered(
        template,
        name=kept.name,
        summary=formats.summary(results),
        headings=[(heading, heading not in WORDS) for heading in made.headings],
        lines=list(zip(made.lines, _has_best(results, best), strict=True)),
        advice=advice(results),
        notes=[*made.notes, *_unfinished(results)],
        sections=sections(figures.collect(results), importances(results) if kept.search else []),
        launches=_launches(kept.launches),
        data=_data(kept.launches),
        definitions={
            word: meaning
            for word, meaning in DEFINITIONS.items()
            if any(heading.startswith(ONLY_WITH.get(word, "")) for heading in made.headings)
        },
        file=f"{kept.name.replace('-', '_')}.py",
        sweep=sweep_file(kept.name, [row.config for row in results.rows], kept.launches[-1] if kept.launches else {}),
        **more,
    )


def rendered(template: str, **values: object) -> str:
    """A template with what it takes; all of it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raylm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _has_best(results: Results, best: Collection[str]) -> list[bool]:
    """Of each line of the table, whether it has the best row of a dataset."""
    return [any(row.config.id in best for row in line.rows) for line in lines(results)]


def _unfinished(results: Results) -> list[str]:
    """What the table's notes leave out: rows that have not ended, or did so without a reason."""
    rows = [row for row in ordered(results) if row.status not in (DONE, RUNNING, WAITING) and not row.reason]
    return [f"{row.config.run_name} {row.status}: {NEXT_RUN.get(row.status, 'no reason is recorded')}" for row in rows]


# ---- figures ------------------------------------------------------------------------------------------------------


def sections(found: figures.Figures, shares: Sequence[tuple[str, figures.Bars]] = ()) -> list[Section]:
    """The figures that have data, drawn."""
    against = "Trials on a line are equal in all other fields."
    timed = [(found.seconds, plots.seconds), (found.tokens_per_second, plots.tokens_per_second)]
    left_out = found.seconds.left_out if found.seconds else 0
    all_sections = [
        Section(
            "Loss curves",
            "Lines: training loss, a mean between points. Markers: val loss. Training loss is taken before each step.",
            tuple(_drawing(plots.curves(one), f"Loss curves, {one.title}") for one in found.curves),
        ),
        Section(
            "Val loss against context length",
            against,
            tuple(_drawing(plots.lines(one), f"Context length, {one.title}") for one in found.by_context_length),
        ),
        Section(
            "Val loss against batch size",
            against,
            tuple(_drawing(plots.lines(one), f"Batch size, {one.title}") for one in found.by_batch_size),
        ),
        Section(
            "All fields that differ",
            "Each line is a done trial, through its values to its val loss; the darker, the lower.",
            tuple(
                _drawing(plots.parallel(one), f"Parallel coordinates, {one.title}", plots.is_wide(one))
                for one in found.parallel
            ),
        ),
        Section(
            "Importance",
            "Share of the spread of the val losses that a field accounts for (PED-ANOVA, of the done trials alone).",
            tuple(_drawing(plots.importance(bars), f"Importance, {dataset}") for dataset, bars in shares),
        ),
        Section(
            "Time and speed",
            "In optimizer steps, without evaluations and checkpoints."
            + (f" {left_out:,} more trials are in results.csv." if left_out else ""),
            tuple(_drawing(draw(bars), draw.__name__.replace("_", " ")) for bars, draw in timed if bars),
        ),
    ]
    return [section for section in all_sections if section.drawings]


def _drawing(figure: Figure, description: str, wide: bool = False) -> Drawing:
    return Drawing(plots.svg_address(figure), description, wide)


# ---- what ran where, and how to run it again ----------------------------------------------------------------------


def _launches(launches: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What each launch ran with; launches that differ in nothing but their time are told together."""
    groups: dict[str, dict[str, str]] = {}
    for launch in launches:
        rest = {
            name.replace("_", " "): plain(value)
            for name, value in launch.items()
            if name not in ("number", "started", "data", "slot")
        }
        group = groups.setdefault(str(rest), {"launch": "", "started": "", **rest})
        for name, key in (("launch", "number"), ("started", "started")):
            group[name] += f"{', ' if group[name] else ''}{launch.get(key, '–')}"
    return list(groups.values())


def _data(launches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The datasets of all launches, each with its tokenizer once."""
    used = [one for launch in launches for one in launch.get("data", [])]
    return list({str(one): one for one in used}.values())
