"""Names and values of fields in labels."""

from __future__ import annotations

from typing import Any

import pytest
from sample_rows import sample_row

from raylm.report import labels


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("a\nb", "a b"),
        (1.23456e-5, "1.23e-05"),
        ("/data/" + "x" * 30, "…" + "x" * 23),
        (0.1 + 0.2, "0.3"),
        (1024, "1024"),
    ],
)
def test_value_in_a_label_is_short(value: Any, label: str) -> None:
    assert labels.format_field_value(value) == label


def test_varying_fields_are_those_with_several_values() -> None:
    rows = [sample_row(batch_size=4), sample_row(batch_size=8, dropout=0.1), sample_row(batch_size=8, seed=1)]
    assert labels.find_varying_fields(rows, "seed") == ["batch_size", "dropout"]
    assert labels.format_legend(["batch_size", "dropout"]) == "batch size, dropout"
    assert labels.format_label(rows[1], ["batch_size", "dropout"]) == "8, 0.1"
