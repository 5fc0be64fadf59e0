"""The reference table: what others got for a row, to stand beside one's own. Standard library only."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from raylm.config.trial import TrialConfig
from raylm.errors import UserError, show

KEYS = ("dataset", "context_length", "model", "batch_size")
LOSSES = ("train_loss", "val_loss", "adj_val_loss")
FREE = frozenset({*KEYS, "seed"})
"""Fields in which a trial may differ from the defaults and still be a row of the packaged table."""


@dataclass(frozen=True)
class ReferenceRow:
    """One row of a reference table; losses in nats, as in one's own."""

    dataset: str
    context_length: int
    model: str
    batch_size: int
    train_loss: float
    val_loss: float
    adj_val_loss: float
    run: str
    note: str

    @property
    def losses(self) -> tuple[float, float, float]:
        """Train, val and adj val loss."""
        return self.train_loss, self.val_loss, self.adj_val_loss

    @property
    def name(self) -> str:
        """What the row is of."""
        return f"{self.dataset} {self.model} {self.context_length}x{self.batch_size}"


@dataclass(frozen=True)
class Reference:
    """A reference table."""

    rows: tuple[ReferenceRow, ...]
    given: bool
    """Whether the user named it: then its rows stand beside all trials with their four keys, else only beside trials
    that are otherwise as the reference's were, which is as the defaults are."""

    def row(self, config: TrialConfig) -> ReferenceRow | None:
        """The row of a trial, None where there is none."""
        others = [name for name, value in config.as_dict().items() if value != getattr(TrialConfig, name)]
        if not self.given and not FREE.issuperset(others):
            return None
        key = tuple(getattr(config, name) for name in KEYS)
        return next((row for row in self.rows if tuple(getattr(row, name) for name in KEYS) == key), None)

    def repeated(self) -> list[tuple[ReferenceRow, ReferenceRow]]:
        """Rows that have all three losses of an earlier row of their dataset: probably copied by mistake."""
        pairs = []
        for number, row in enumerate(self.rows):
            for before in self.rows[:number]:
                if (before.dataset, before.losses) == (row.dataset, row.losses):
                    pairs.append((before, row))
        return pairs


def load_reference(path: Path | None = None) -> Reference:
    """A reference table from a CSV file; without one, the 21 rows that come with raylm.

    Raises:
        UserError: if the file cannot be read, or a line of it is no row.
    """
    if path is None:
        text = resources.files("raylm.report").joinpath("reference.csv").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--reference {path} cannot be read: {error}") from None
    lines = csv.DictReader(text.splitlines())
    if missing := [name for name in (*KEYS, *LOSSES) if name not in (lines.fieldnames or ())]:
        raise UserError(f"--reference {path} has no column {', '.join(missing)}; it has {lines.fieldnames}")
    return Reference(tuple(_row(line, number) for number, line in enumerate(lines, start=2)), given=path is not None)


def _row(line: dict[str, str | None], number: int) -> ReferenceRow:
    def cell(name: str) -> str:
        return (line.get(name) or "").strip()

    try:
        train, val, adj = losses = [float(cell(name)) for name in LOSSES]
        if not all(map(math.isfinite, losses)):
            raise ValueError("a loss is not finite")
        context_length, batch_size = int(cell("context_length")), int(cell("batch_size"))
    except ValueError as error:
        raise UserError(f"line {number} of the reference table is no row: {error}: {show(line)}") from None
    key = (cell("dataset"), context_length, cell("model"), batch_size)
    return ReferenceRow(*key, train, val, adj, cell("run"), cell("note"))
