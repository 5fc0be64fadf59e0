"""Results of a sweep in Python and notebooks: pandas frames, matplotlib figures, an HTML table."""

from __future__ import annotations

import dataclasses
import html
import os
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING

from raylm.config.trial import TrialConfig
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.report import formats
from raylm.report.reference import load_reference
from raylm.report.tables.table import build_table
from raylm.results import sweep_record
from raylm.results.folder import load_rows
from raylm.results.open_storage import open_storage
from raylm.results.rows import SweepRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


PANDAS_DTYPES: dict[type, str] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}
COLUMN_TYPES: dict[str, type] = {
    **dict.fromkeys(("best_epoch", "steps", "tokens_seen", "micro_batch_size"), int),
    **dict.fromkeys(("recompute", "going_up", "lossless", "best"), bool),
    **dict.fromkeys(("run", "status", "reason", "trial_id", "checkpoint", "precision"), str),
}
"""Types of columns of results.csv that are neither fields of a trial nor floats."""


def load_results(uri: str | os.PathLike[str]) -> Results:
    """Return the results of a sweep, finished or not.

    Args:
        uri: results folder: a path, or a URI such as `s3://bucket/prefix/sweep`.

    Raises:
        UserError: if it is not a results folder, its sweep.json is damaged, or the bucket cannot be reached.
    """
    storage = open_storage(uri)
    record = sweep_record.load(storage)
    if record is None:
        raise UserError(
            f"{uri} is not a results folder: it has no {sweep_record.RECORD_FILE}; "
            "expected STORAGE/SWEEP, as in runs/quickstart"
        )
    return Results.from_rows(load_rows(storage, record.trials, record))


class Results(SweepRows):
    """Results of a sweep: its rows, as tables and figures. Notebooks display the table."""

    @classmethod
    def from_rows(cls, rows: SweepRows) -> Results:
        """Return the results with these rows."""
        return cls(rows.storage, rows.rows, rows.record)

    def to_pandas(self) -> DataFrame:
        """Return the rows in the table's order, with the columns of results.csv.

        Each column has a nullable dtype (`Int64`, `Float64`, `boolean`, `string`) that does not depend on its values.
        """
        import pandas

        records = formats.build_records(self, load_reference())
        names = list(records[0]) if records else []
        columns = {name: pandas.array([record[name] for record in records], dtype=_dtype(name)) for name in names}
        return pandas.DataFrame(columns)

    def plot_curves(self) -> Plots:
        """Return training and val losses of the trials over epochs."""
        return self._plot("loss-curves")

    def plot_field(self, field: str) -> Plots:
        """Return val loss over a field that varies, such as `learning_rate`; empty if it does not.

        A line joins done trials that are equal in all other fields; if the trials of a search differ in several, each
        is a point. Seeds are averaged.

        Raises:
            UserError: if no trial has such a field.
        """
        names = [item.name for item in dataclasses.fields(TrialConfig)]
        if field not in names:
            raise UserError(
                f"no field {safe_repr(field)}{format_suggestion(field, names) or '; expected a trial field'}"
            )
        return self._plot(f"val-loss-by-{field.replace('_', '-')}")

    def plot_context_length(self) -> Plots:
        """Return val loss over context length; `plot_field("context_length")`."""
        return self.plot_field("context_length")

    def plot_batch_size(self) -> Plots:
        """Return val loss over batch size; `plot_field("batch_size")`."""
        return self.plot_field("batch_size")

    def plot_heat_maps(self) -> Plots:
        """Return val loss over each two fields whose values form a grid."""
        return self._plot("heat-map")

    def plot_fields(self) -> Plots:
        """Return parallel coordinates: a line per done trial through its varying fields to its val loss."""
        return self._plot("parallel-coordinates")

    def plot_tradeoffs(self) -> Plots:
        """Return val loss against training time and against parameters, with the trials that no other beats."""
        return self._plot("val-loss-against-training-time", "val-loss-against-parameters")

    def plot_importance(self) -> Plots:
        """Return the share of the variance of the losses that each field explains, per dataset."""
        from raylm.report import importance
        from raylm.report.plots import bars

        return Plots(bars.plot_importances(chart, dataset) for dataset, chart in importance.compute_importances(self))

    def plot_time(self) -> Plots:
        """Return training time and training tokens per second of the trials."""
        return self._plot("speed")

    def _plot(self, *names: str) -> Plots:
        """Return the panels of figures of the gallery."""
        from raylm.report.figures.build import build_figures
        from raylm.report.plots import gallery

        exhibits = gallery.list_exhibits(build_figures(self))
        return Plots(panel.draw() for exhibit in exhibits if exhibit.name in names for panel in exhibit.panels)

    def __repr__(self) -> str:
        """Return the location and the number of rows by status."""
        return f"<{self.storage.uri}: {formats.format_summary(self)}>"

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        table = build_table(self, load_reference())
        rows = [
            f"<tr>{_html_cells('th', table.column_names)}</tr>",
            *(f"<tr>{_html_cells('td', cells)}</tr>" for cells in table.rows),
        ]
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
        return f"<table>{''.join(rows)}</table>{notes}"


class Plots(tuple["Figure", ...]):
    """Matplotlib figures, one per panel; empty without data. Notebooks display them."""

    def _repr_html_(self) -> str:
        from raylm.report.plots import style

        images = ((style.to_data_url(figure), html.escape(style.get_alt_text(figure))) for figure in self)
        return "".join(f'<img src="{data_url}" alt="{alt_text}">' for data_url, alt_text in images)


def _html_cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _dtype(column: str) -> str:
    """Return the pandas dtype of a column of results.csv."""
    known = str if column.endswith(formats.PRECISION_SUFFIX) else COLUMN_TYPES.get(column, float)
    hint = typing.get_type_hints(TrialConfig).get(column, known)
    types = typing.get_args(hint) or (hint,)  # `int | None`
    return next(dtype for kind, dtype in PANDAS_DTYPES.items() if kind in types)
