"""The reference table: what others got for a row, to stand beside one's own. Standard library only."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from raylm.config.trial import TrialConfig
from raylm.errors import UserError, safe_repr

KEY_FIELDS = ("dataset", "context_length", "model", "batch_size")
LOSS_FIELDS = ("train_loss", "val_loss", "adj_val_loss")
ALLOWED_FIELDS = frozenset({*KEY_FIELDS, "seed"})
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
    def label(self) -> str:
        """What the row is of."""
        return f"{self.dataset} {self.model} {self.context_length}x{self.batch_size}"


@dataclass(frozen=True)
class ReferenceTable:
    """A reference table."""

    rows: tuple[ReferenceRow, ...]
    is_custom: bool
    """Whether the user named it: then its rows stand beside all trials with their four keys, else only beside trials
    that are otherwise as the reference's were, which is as the defaults are."""

    def find_row(self, config: TrialConfig) -> ReferenceRow | None:
        """The row of a trial, None where there is none."""
        others = [name for name, value in config.as_dict().items() if value != getattr(TrialConfig, name)]
        if not self.is_custom and not ALLOWED_FIELDS.issuperset(others):
            return None
        key = tuple(getattr(config, name) for name in KEY_FIELDS)
        return next((row for row in self.rows if tuple(getattr(row, name) for name in KEY_FIELDS) == key), None)

    def find_duplicates(self) -> list[tuple[ReferenceRow, ReferenceRow]]:
        """Rows that have all three losses of an earlier row of their dataset: probably copied by mistake."""
        pairs = []
        for number, row in enumerate(self.rows):
            for before in self.rows[:number]:
                if (before.dataset, before.losses) == (row.dataset, row.losses):
                    pairs.append((before, row))
        return pairs


def load_reference(path: Path | None = None) -> ReferenceTable:
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
    if missing := [name for name in (*KEY_FIELDS, *LOSS_FIELDS) if name not in (lines.fieldnames or ())]:
        raise UserError(f"--reference {path} has no column {', '.join(missing)}; it has {lines.fieldnames}")
    return ReferenceTable(
        tuple(_parse_row(line, number) for number, line in enumerate(lines, start=2)), is_custom=path is not None
    )


def _parse_row(record: dict[str, str | None], line_number: int) -> ReferenceRow:
    def cell(name: str) -> str:
        return (record.get(name) or "").strip()

    try:
        train, val, adj = losses = [float(cell(name)) for name in LOSS_FIELDS]
        if not all(map(math.isfinite, losses)):
            raise ValueError("a loss is not finite")
        context_length, batch_size = int(cell("context_length")), int(cell("batch_size"))
    except ValueError as error:
        raise UserError(f"line {line_number} of the reference table is no row: {error}: {safe_repr(record)}") from None
    key = (cell("dataset"), context_length, cell("model"), batch_size)
    return ReferenceRow(*key, train, val, adj, cell("run"), cell("note"))
