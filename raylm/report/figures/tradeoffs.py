"""Loss against cost, training time or parameters, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from raylm.config.catalog import MODELS, ModelShape
from raylm.report.figures.grouping import choose_loss, group_by, ranked_rows, sort_values
from raylm.report.figures.panels import MAX_LINES, Points, Series, TradeoffPanel
from raylm.report.labels import format_field_value
from raylm.results import json_files
from raylm.results.rows import Row, SweepRows

TRAINING_TIME, PARAMETERS = "training time", "parameters"
"""Costs of a trial: seconds in optimizer steps; number of weights."""


def build_tradeoff_panels(results: SweepRows) -> tuple[tuple[TradeoffPanel, ...], tuple[TradeoffPanel, ...]]:
    """Return the panels of the loss against training time, and against parameters."""
    sizes = _count_parameters(results)
    by_time = _build_panels(results, TRAINING_TIME, _training_seconds)
    return by_time, _build_panels(results, PARAMETERS, lambda row: sizes.get(row.config.model))


def find_front(points: Iterable[tuple[float, float]]) -> Points:
    """Return the points with a lower loss than every point of lower or equal cost, by cost."""
    front: list[tuple[float, float]] = []
    for cost, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return tuple(front)


def _build_panels(results: SweepRows, name: str, cost: Callable[[Row], float | None]) -> tuple[TradeoffPanel, ...]:
    """Return a panel for each dataset whose ranked rows have different costs."""
    panels = []
    for rows in group_by(ranked_rows(results), lambda row: row.config.dataset):
        loss = choose_loss(results, rows[0].config.dataset)
        costs = {row.config.id: value for row in rows if (value := cost(row)) is not None}
        shown = [row for row in rows if row.config.id in costs]
        if len(set(costs.values())) < 2:
            continue
        points = {row.config.id: (costs[row.config.id], loss.of(row)) for row in shown}
        models = sort_values("model", (row.config.model for row in shown))
        groups = [[row for row in shown if row.config.model == model] for model in models]
        is_crowded = len(groups) > MAX_LINES
        series = [
            Series(
                "" if is_crowded else format_field_value(group[0].config.model),
                tuple(points[row.config.id] for row in group),
                runs=tuple((row.config.run_name,) for row in group),
            )
            for group in ([shown] if is_crowded else groups)
        ]
        note = _describe_devices(results, shown) if name == TRAINING_TIME else ""
        legend = "model" if len(series) > 1 else ""
        title = format_field_value(rows[0].config.dataset) + ("" if len(models) > 1 else f", {series[0].label}")
        front = find_front(points.values())
        panels.append(TradeoffPanel(title, legend, name, tuple(series), front, note, loss.name))
    return tuple(panels)


def _training_seconds(row: Row) -> float | None:
    seconds = row.latest_checkpoint.progress.training_seconds if row.latest_checkpoint else 0.0
    return seconds or None


def _describe_devices(results: SweepRows, rows: Sequence[Row]) -> str:
    """Return a note if the rows are known to have been trained on different devices; else an empty text."""
    launches = [launch for row in rows if (launch := results.find_launch(row))]
    devices = dict.fromkeys(launch.hardware.trials_on for launch in launches if launch.hardware.trials_on)
    return f"trained on different devices: {', '.join(devices)}" if len(devices) > 1 else ""


def _count_parameters(results: SweepRows) -> dict[str, int]:
    """Return the number of weights by model: of GPT-2's sizes, and of saved models with its layers."""
    sizes = {}
    for row in ranked_rows(results):
        model = row.config.model
        if model in MODELS:
            sizes[model] = MODELS[model].shape.num_parameters
        elif model not in sizes and (shape := _read_saved_shape(results, row)):
            sizes[model] = shape.num_parameters
    return sizes


def _read_saved_shape(results: SweepRows, row: Row) -> ModelShape | None:
    """Return the shape in the config.json of a row's best checkpoint; None if its layers are not GPT-2's."""
    if row.best_checkpoint is None:
        return None
    config = json_files.load_or_none(results.storage, f"{row.best_checkpoint.folder}/config.json", dict) or {}
    return ModelShape.from_config(config) if config.get("model_type") == "gpt2" else None
