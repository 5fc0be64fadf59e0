"""A sweep's results for Python and notebooks: as a frame of pandas, as figures of matplotlib."""

from __future__ import annotations

import html
import os
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.report import formats
from raylm.report.reference import load_reference
from raylm.report.table import build_table
from raylm.results import sweep_record
from raylm.results.folder import load_rows
from raylm.results.open_storage import open_storage
from raylm.results.rows import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


INTEGER_COLUMNS = ("best_epoch", "steps", "tokens_seen", "micro_batch_size")
BOOLEAN_COLUMNS = ("recompute", "going_up")
TEXT_COLUMNS = ("run", "status", "reason", "trial_id", "checkpoint")
"""Columns of results.csv that are neither losses, nor seconds, nor fields of a trial."""


def load_results(uri: str | os.PathLike[str]) -> SweepResults:
    """The results of a sweep from its folder, or from the URI of its folder in a bucket.

    Raises:
        UserError: if this is no results folder of raylm.
    """
    folder = open_storage(uri)
    record = sweep_record.load(folder)
    if record is None:
        raise UserError(
            f"{uri} is no results folder: it has no {sweep_record.RECORD_FILE}; "
            "expected STORAGE/SWEEP, as in runs/quickstart"
        )
    return SweepResults.from_results(load_rows(folder, record.trials, record))


class SweepResults(Results):
    """The rows of a sweep, in its order. A notebook shows their table."""

    @classmethod
    def from_results(cls, results: Results) -> SweepResults:
        """The same rows."""
        return cls(results.storage, results.rows, results.record)

    def to_pandas(self) -> DataFrame:
        """A row for each trial, in the table's order, with the columns of results.csv.

        Each column has its type (`Int64`, `Float64`, `boolean`, `string`) whatever is in it; what is missing is NA.
        """
        import pandas

        records = formats.build_records(self, load_reference())
        names = list(records[0]) if records else []
        columns = {name: pandas.array([one[name] for one in records], dtype=_pandas_dtype(name)) for name in names}
        return pandas.DataFrame(columns)

    def plot_curves(self) -> Plots:
        """Training loss and val losses of each trial over its epochs."""
        from raylm.report import figures, plots

        return Plots(map(plots.plot_loss_curves, figures.build_figures(self).curves))

    def plot_context_length(self) -> Plots:
        """Val loss against context length, done trials that are equal in all other fields being joined."""
        from raylm.report import figures, plots

        return Plots(map(plots.plot_series, figures.build_figures(self).val_loss_by_context_length))

    def plot_batch_size(self) -> Plots:
        """Val loss against batch size, done trials that are equal in all other fields being joined."""
        from raylm.report import figures, plots

        return Plots(map(plots.plot_series, figures.build_figures(self).val_loss_by_batch_size))

    def plot_fields(self) -> Plots:
        """Each done trial as a line through its values of the fields that differ, to its val loss."""
        from raylm.report import figures, plots

        return Plots(map(plots.plot_parallel_coordinates, figures.build_figures(self).parallel_coordinates))

    def plot_importance(self) -> Plots:
        """Share of the spread of the val losses that each field accounts for, by dataset."""
        from raylm.report import importance, plots

        return Plots(plots.plot_importances(bars) for _, bars in importance.compute_importances(self))

    def plot_time(self) -> Plots:
        """Seconds in optimizer steps and training tokens per second, of each trial."""
        from raylm.report import figures, plots

        found = figures.build_figures(self)
        drawn = (
            (plots.plot_training_time, found.training_seconds),
            (plots.plot_tokens_per_second, found.tokens_per_second),
        )
        return Plots(draw(bars) for draw, bars in drawn if bars)

    def __repr__(self) -> str:
        """How the rows stand: all of them would be pages."""
        return f"<{self.storage.uri}: {formats.format_summary(self)}>"

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        made = build_table(self, load_reference())
        rows = [
            f"<tr>{_html_cells('th', made.column_names)}</tr>",
            *(f"<tr>{_html_cells('td', line)}</tr>" for line in made.rows),
        ]
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in made.notes)
        return f"<table>{''.join(rows)}</table>{notes}"


class Plots(tuple["Figure", ...]):
    """Figures of matplotlib, one for each panel; none where there is no data. A notebook shows them."""

    def _repr_html_(self) -> str:
        from raylm.report import plots

        return "".join(f'<img src="{plots.to_data_url(figure)}" alt="">' for figure in self)


def _html_cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _pandas_dtype(column: str) -> str:
    """The type of a column of results.csv, in pandas' words."""
    hints = typing.get_type_hints(TrialConfig)
    if column in hints:
        kinds = typing.get_args(hints[column]) or (hints[column],)  # `int | None`
        return next(name for kind, name in PANDAS_DTYPES.items() if kind in kinds)
    kind = (
        int
        if column in INTEGER_COLUMNS
        else bool
        if column in BOOLEAN_COLUMNS
        else str
        if column in TEXT_COLUMNS
        else float
    )
    return PANDAS_DTYPES[kind]


PANDAS_DTYPES: dict[type, str] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}
