"""Reference table: published losses to compare rows with. Standard library only."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from raylm.config.trial import TrialConfig
from raylm.errors import UserError, safe_repr
from raylm.results.progress import LOSS_NAMES

KEY_FIELDS = ("dataset", "context_length", "model", "batch_size")
"""Fields that identify a row of a reference table."""
ALLOWED_FIELDS = frozenset({*KEY_FIELDS, "seed"})
"""Fields in which a trial may differ from the defaults and still match a row of the packaged table."""


@dataclass(frozen=True)
class ReferenceRow:
    """Row of a reference table; losses in nats, as in the table of a sweep."""

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
        """Key fields in one line: `imdb gpt2 256x8`."""
        return f"{self.dataset} {self.model} {self.context_length}x{self.batch_size}"


@dataclass(frozen=True)
class ReferenceTable:
    """Table of published losses."""

    rows: tuple[ReferenceRow, ...]
    is_custom: bool
    """True for a table of the user's, which matches trials by the four key fields alone. The packaged table matches
    trials only if all other fields but the seed have their defaults, as they were for its rows."""

    def find_row(self, config: TrialConfig) -> ReferenceRow | None:
        """Return the row that a trial is compared with, or None."""
        changed = [name for name, value in config.as_dict().items() if value != getattr(TrialConfig, name)]
        if not self.is_custom and not ALLOWED_FIELDS.issuperset(changed):
            return None
        key = tuple(getattr(config, name) for name in KEY_FIELDS)
        return next((row for row in self.rows if tuple(getattr(row, name) for name in KEY_FIELDS) == key), None)

    def find_duplicates(self) -> list[tuple[ReferenceRow, ReferenceRow]]:
        """Return pairs of rows of a dataset with the same three losses, probably copied by mistake; earlier first."""
        pairs = []
        for number, row in enumerate(self.rows):
            for earlier in self.rows[:number]:
                if (earlier.dataset, earlier.losses) == (row.dataset, row.losses):
                    pairs.append((earlier, row))
        return pairs


def load_reference(path: Path | None = None) -> ReferenceTable:
    """Return the reference table of a CSV file, or by default the 21 rows packaged with raylm.

    Raises:
        UserError: if the file cannot be read, lacks a column, or has an invalid line.
    """
    if path is None:
        text = resources.files("raylm.report").joinpath("reference.csv").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--reference {path} cannot be read: {error}") from None
    lines = csv.DictReader(text.splitlines())
    if missing := [name for name in (*KEY_FIELDS, *LOSS_NAMES) if name not in (lines.fieldnames or ())]:
        columns = ", ".join(lines.fieldnames or ()) or "none"
        raise UserError(f"--reference {path} has no column {', '.join(missing)}; its columns: {columns}")
    rows = tuple(_parse_row(line, number) for number, line in enumerate(lines, start=2))
    return ReferenceTable(rows, is_custom=path is not None)


def _parse_row(record: dict[str, str | None], line_number: int) -> ReferenceRow:
    def cell(name: str) -> str:
        return (record.get(name) or "").strip()

    try:
        train, val, adj = losses = [float(cell(name)) for name in LOSS_NAMES]
        if not all(map(math.isfinite, losses)):
            raise ValueError("a loss is not finite")
        context_length, batch_size = int(cell("context_length")), int(cell("batch_size"))
    except ValueError as error:
        raise UserError(f"line {line_number} of the reference table is invalid: {error}: {safe_repr(record)}") from None
    key = (cell("dataset"), context_length, cell("model"), batch_size)
    return ReferenceRow(*key, train, val, adj, cell("run"), cell("note"))
