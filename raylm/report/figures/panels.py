"""Panels: the parts that figures consist of, as plain values.

Each panel shows one dataset, or one model of it where the dataset has many lines. Lines are labelled with the fields
that differ within the panel.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.results.measures import VAL_LOSS

MAX_LINES = 6
"""Maximum number of lines in a panel: as many as can be distinguished without color."""
MAX_BARS = 40
"""Maximum number of trials in a bar chart."""

LINEAR, LOG, LOG2, CATEGORIES = "linear", "log", "log2", "categories"
"""Scales of an axis: proportional; logarithmic, with ticks at powers of ten or at the values; evenly spaced values."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """Losses of a trial during training; points are (epochs trained, nats per token)."""

    label: str
    train: Points
    val: Points
    run: str = ""
    """Run name."""

    @property
    def points(self) -> Points:
        """Points of both losses."""
        return self.train + self.val


@dataclass(frozen=True)
class CurvesPanel:
    """Loss curves of trials of one dataset."""

    title: str
    legend: str
    """Fields that the labels show, such as `context length, batch size`; empty if none differs."""
    curves: tuple[Curve, ...]
    loss_range: tuple[float, float]
    """Lowest and highest loss over all panels of the dataset, nats per token, for a common scale."""


@dataclass(frozen=True)
class Series:
    """Losses of trials as a function of one number; points are (value, mean loss of the seeds)."""

    label: str
    points: Points
    intervals: tuple[float, ...] = ()
    """Half the width of the 95 % confidence interval of each mean; 0 for a single seed."""
    runs: tuple[tuple[str, ...], ...] = ()
    """Run names of the trials of each point."""


@dataclass(frozen=True)
class FieldPanel:
    """Loss as a function of one field."""

    title: str
    legend: str
    field: str
    """Name of the field, such as `context_length`."""
    series: tuple[Series, ...]
    scale: str = LINEAR
    """`linear`, `log`, `log2` or `categories`."""
    categories: tuple[str, ...] = ()
    """Values of the field with the scale `categories`; points have their numbers, from 0."""
    is_joined: bool = True
    """True if trials on a line are equal in all other fields; False for a search, whose trials differ in several."""
    loss_name: str = VAL_LOSS
    """Name of the loss, one of `measures.MEASURES`."""


@dataclass(frozen=True)
class HeatMap:
    """Losses of a grid of two fields of one dataset."""

    title: str
    row_field: str
    column_field: str
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    losses: tuple[tuple[float | None, ...], ...]
    """Loss of each cell by row and column, the lowest of its trials; None without a done trial."""
    remarks: tuple[tuple[str, ...], ...]
    """Status of each cell without a loss; else empty."""
    num_trials: int
    """Trials of each cell, seeds not counted."""
    loss_name: str = VAL_LOSS


@dataclass(frozen=True)
class TradeoffPanel:
    """Losses of the trials of a dataset against a cost, and the trials that no other beats in both."""

    title: str
    legend: str
    cost: str
    """`training time` (seconds) or `parameters`."""
    series: tuple[Series, ...]
    front: Points
    """Points with a lower loss than every point of lower or equal cost, by cost."""
    note: str = ""
    """Reason why costs compare only roughly; else empty."""
    loss_name: str = VAL_LOSS


@dataclass(frozen=True)
class Axis:
    """Axis of parallel coordinates."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    """Position on the axis, from 0 (bottom) to 1 (top), and label."""


@dataclass(frozen=True)
class ParallelPanel:
    """Done trials of a dataset as lines through one axis per varying field and an axis of the loss."""

    title: str
    axes: tuple[Axis, ...]
    coordinates: tuple[tuple[float, ...], ...]
    """Positions of each trial on all axes, from 0 to 1; the last is its loss."""
    values: tuple[tuple[str, ...], ...] = ()
    """Values of each trial on all axes; the last is its loss."""
    runs: tuple[str, ...] = ()
    """Run name of each trial."""


@dataclass(frozen=True)
class BarChart:
    """Bar chart with a number per trial, or per field."""

    legend: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    num_omitted: int = 0
    """Number of trials beyond the first `MAX_BARS`."""
    runs: tuple[str, ...] = ()
    """Run name of each bar; empty if bars are not trials."""


@dataclass(frozen=True)
class Figures:
    """Data of all figures of a sweep; a figure without data is empty or None."""

    curves: tuple[CurvesPanel, ...]
    by_field: tuple[FieldPanel, ...]
    """Loss over each field that varies."""
    heat_maps: tuple[HeatMap, ...]
    parallel_coordinates: tuple[ParallelPanel, ...]
    by_training_time: tuple[TradeoffPanel, ...]
    by_parameters: tuple[TradeoffPanel, ...]
    training_seconds: BarChart | None
    """Training time, without evaluations and checkpoints."""
    tokens_per_second: BarChart | None
    """Training tokens per second of training time."""

    def select_field(self, field: str) -> tuple[FieldPanel, ...]:
        """Return the panels of the loss over one field."""
        return tuple(panel for panel in self.by_field if panel.field == field)


Panel = CurvesPanel | FieldPanel | HeatMap | TradeoffPanel | ParallelPanel | BarChart
