"""report.html: a results folder as one page that needs nothing else, for a browser, for a phone, for paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jinja2
from matplotlib.figure import Figure

from raylm.config.sweep_file import format_sweep_file
from raylm.report import figures, formats, plots
from raylm.report.advice import build_advice
from raylm.report.formats import to_plain_text
from raylm.report.importance import compute_importances
from raylm.report.reference import ReferenceTable, load_reference
from raylm.report.table import RISING_LOSS, build_table, group_by_seed, sort_rows
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, PENDING, QUEUED, RUNNING, Results
from raylm.results.sweep_record import DataRecord, LaunchRecord, SweepRecord

REPORT_FILE = "report.html"
TEXT_COLUMNS = ("dataset", "model", "run")
"""Columns of the table that hold no numbers."""

NEXT_RUN_NOTES = {INTERRUPTED: "the next run goes on from its last checkpoint", PENDING: "the next run begins it"}
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
    RISING_LOSS: "the training loss at the end is higher than its minimum by more than noise",
    "val at": "val loss of the best checkpoint with windows of so many tokens",
    "n, ±": "finished seeds; and half the width of the 95 % interval of their mean, by Student's t",
    "ref, diff": "the loss in the reference table, and this table's minus it",
    "training time": "time in optimizer steps, without evaluations and checkpoints",
    "tokens per second": "training tokens divided by the training time",
    DIVERGED: "a loss was not finite: the trial has ended and is not ranked",
}
DEFINITION_COLUMNS = {"val at": "val at", "n, ±": "n", "ref, diff": "ref"}
"""Definitions that only some tables need, with how a column of these begins."""


@dataclass(frozen=True)
class Plot:
    """A panel, ready for the page."""

    data_url: str
    """An SVG as a `data:` address."""
    alt_text: str
    """For those who cannot see it."""
    is_wide: bool = False


@dataclass(frozen=True)
class Section:
    """A figure of one or more panels."""

    title: str
    caption: str
    plots: tuple[Plot, ...]

    @property
    def is_narrow(self) -> bool:
        """Whether another section has room beside it."""
        return len(self.plots) == 1 and not self.plots[0].is_wide


def write_html(results: Results, reference: ReferenceTable | None = None) -> str:
    """Writes report.html into the results folder, if it says something else than before; says where it is.

    Args:
        reference: to stand beside; None: the one that comes with raylm.
    """
    text = render_html(results, reference or load_reference())
    if not results.storage.has_text(REPORT_FILE, text):
        results.storage.write(REPORT_FILE, text)
    return results.storage.uri_of(REPORT_FILE)


def render_html(
    results: Results, reference: ReferenceTable | None = None, template_name: str = "report.html", **context: object
) -> str:
    """The page; the same text for the same folder.

    Args:
        template: the report's, or one that extends it.
        more: what that takes besides.
    """
    record = results.record or SweepRecord(results.storage.name, [])
    made = build_table(results, reference)
    best = {row.config.id for row in results.best_by_dataset.values()}
    return render_template(
        template_name,
        name=record.name,
        summary=formats.format_summary(results),
        headings=[(heading, heading not in TEXT_COLUMNS) for heading in made.column_names],
        lines=list(zip(made.rows, _mark_best_lines(results, best), strict=True)),
        advice=build_advice(results),
        notes=[*made.notes, *_unfinished_notes(results)],
        sections=build_sections(figures.build_figures(results), compute_importances(results) if record.search else []),
        launches=_group_launches(results.launches),
        data=_unique_datasets(results.launches),
        definitions={
            word: meaning
            for word, meaning in DEFINITIONS.items()
            if any(heading.startswith(DEFINITION_COLUMNS.get(word, "")) for heading in made.column_names)
        },
        file=f"{record.name.replace('-', '_')}.py",
        sweep=format_sweep_file(
            record.name,
            [row.config for row in results.rows],
            results.launches[-1].precision if results.launches else "auto",
        ),
        **context,
    )


def render_template(template_name: str, **context: object) -> str:
    """A template with what it takes; all of it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raylm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template_name).render(**context)


def _mark_best_lines(results: Results, best_ids: Collection[str]) -> list[bool]:
    """Of each line of the table, whether it has the best row of a dataset."""
    return [any(row.config.id in best_ids for row in line.rows) for line in group_by_seed(results)]


def _unfinished_notes(results: Results) -> list[str]:
    """What the table's notes leave out: rows that have not ended, or did so without a reason."""
    rows = [row for row in sort_rows(results) if row.status not in (DONE, RUNNING, QUEUED) and not row.reason]
    return [
        f"{row.config.run_name} {row.status}: {NEXT_RUN_NOTES.get(row.status, 'no reason is recorded')}" for row in rows
    ]


# ---- figures ------------------------------------------------------------------------------------------------------


def build_sections(
    figure_data: figures.Figures, importance_charts: Sequence[tuple[str, figures.BarChart]] = ()
) -> list[Section]:
    """The figures that have data, drawn."""
    against = "Trials on a line are equal in all other fields."
    timed = [
        (figure_data.training_seconds, plots.plot_training_time),
        (figure_data.tokens_per_second, plots.plot_tokens_per_second),
    ]
    left_out = figure_data.training_seconds.num_omitted if figure_data.training_seconds else 0
    all_sections = [
        Section(
            "Loss curves",
            "Lines: training loss, a mean between points. Markers: val loss. Training loss is taken before each step.",
            tuple(_render_plot(plots.plot_loss_curves(one), f"Loss curves, {one.title}") for one in figure_data.curves),
        ),
        Section(
            "Val loss against context length",
            against,
            tuple(
                _render_plot(plots.plot_series(one), f"Context length, {one.title}")
                for one in figure_data.val_loss_by_context_length
            ),
        ),
        Section(
            "Val loss against batch size",
            against,
            tuple(
                _render_plot(plots.plot_series(one), f"Batch size, {one.title}")
                for one in figure_data.val_loss_by_batch_size
            ),
        ),
        Section(
            "All fields that differ",
            "Each line is a done trial, through its values to its val loss; the darker, the lower.",
            tuple(
                _render_plot(
                    plots.plot_parallel_coordinates(one), f"Parallel coordinates, {one.title}", plots.is_wide(one)
                )
                for one in figure_data.parallel_coordinates
            ),
        ),
        Section(
            "Importance",
            "Share of the spread of the val losses that a field accounts for (PED-ANOVA, of the done trials alone).",
            tuple(
                _render_plot(plots.plot_importances(bars), f"Importance, {dataset}")
                for dataset, bars in importance_charts
            ),
        ),
        Section(
            "Time and speed",
            "In optimizer steps, without evaluations and checkpoints."
            + (f" {left_out:,} more trials are in results.csv." if left_out else ""),
            tuple(_render_plot(draw(bars), draw.__name__.replace("_", " ")) for bars, draw in timed if bars),
        ),
    ]
    return [section for section in all_sections if section.plots]


def _render_plot(figure: Figure, alt_text: str, is_wide: bool = False) -> Plot:
    return Plot(plots.to_data_url(figure), alt_text, is_wide)


# ---- what ran where, and how to run it again ----------------------------------------------------------------------


def _group_launches(launches: Sequence[LaunchRecord]) -> list[dict[str, str]]:
    """Return the environment of each launch; launches that differ in their time only are one group."""
    groups: dict[str, dict[str, str]] = {}
    for launch in launches:
        rest = {
            name.replace("_", " "): to_plain_text(value)
            for name, value in dataclasses.asdict(launch).items()
            if name not in ("number", "started", "data", "slot")
        }
        group = groups.setdefault(str(rest), {"launch": "", "started": "", **rest})
        for name, value in (("launch", launch.number), ("started", launch.started or "–")):
            group[name] += f"{', ' if group[name] else ''}{value}"
    return list(groups.values())


def _unique_datasets(launches: Sequence[LaunchRecord]) -> list[DataRecord]:
    """Return the datasets of all launches without repetitions."""
    return list(dict.fromkeys(data for launch in launches for data in launch.data))
