"""Tables on terminals of any width: numbers are whole or absent, whatever gives way."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from raylm.monitor.fitted_table import render_table
from raylm.report.tables.columns import LOSS_COLUMNS, REFERENCE_COLUMNS, RUN_COLUMN, Column

COLUMNS = [*REFERENCE_COLUMNS[:4]]
for column in LOSS_COLUMNS:
    COLUMNS += [column, Column("ref"), Column("diff")]
COLUMNS += [Column("best epoch"), RUN_COLUMN]
LOSSES = ["{}.98", "4.98", "-{}.00", "{}.28", "5.28", "+0.0{}", "1{}.10", "10.10", "+383.3{}"]
ROWS = [
    [
        "./texts/a long path/文字.txt",
        "64",
        f"./models/model-{n}",
        "8",
        *(loss.format(n) for loss in LOSSES),
        "2",
        f"txt-model-{n}-64x8-lr0.00{n}-e2-671b9abe1e",
    ]
    for n in range(3)
]
NUMBER = re.compile(r"[+-]?\d+\.\d+")


def render(width: int, rows: list[list[str]] = ROWS, columns: list[Column] = COLUMNS) -> list[str]:
    return [Text.from_markup(line).plain for line in render_table(columns, rows, width)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 140, 200])
def test_no_number_is_cut(width: int) -> None:
    lines = render(width)
    numbers = [number for line in lines for number in NUMBER.findall(re.sub(r"txt-model\S*", "", line))]
    constant = {"4.98", "5.28", "10.10"}  # of the reference
    losses = [number for row in ROWS for number in row[4:13]]
    assert numbers in (losses, [number for number in losses if number not in constant])
    assert all(any(row[-1] in line for line in lines) for row in ROWS)
    for line in lines:
        is_name = "txt-model" in line or "path" in line or line.startswith("in all rows")
        assert cell_len(line) <= width or is_name, line


def test_wide_terminal_has_one_line_for_each_row() -> None:
    heading, *lines = render(250)
    assert heading.split() == [word for column in COLUMNS for word in column.name.split()]
    assert [line.split()[-1] for line in lines] == [row[-1] for row in ROWS]


def test_columns_that_never_vary_are_given_once() -> None:
    columns = [Column("dataset", is_numeric=False), Column("batch size"), Column("val loss"), RUN_COLUMN]
    rows = [["imdb", "8", f"{n}.25", f"a-long-run-name-{n}"] for n in range(2)]
    assert render(18, rows, columns) == [
        "in all rows: dataset imdb, batch size 8",
        " val",
        "loss",
        "0.25",
        "  a-long-run-name-0",
        "1.25",
        "  a-long-run-name-1",
    ]


def test_names_are_shortened_in_their_middle() -> None:
    columns = [Column("model", is_numeric=False), Column("val loss"), RUN_COLUMN]
    rows = [[f"owner/some-long-model-{n}", f"1.2{n}", f"run-{n}"] for n in range(2)]
    text = "\n".join(render(24, rows, columns))
    assert re.search(r"owner/\S*…\S*model-0\s+1\.20", text), text


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    rows=st.lists(st.tuples(st.text("ab文…[]", max_size=30), st.floats(0, 1e6).map("{:.2f}".format)), max_size=4),
    width=st.integers(1, 80),
)
def test_every_number_of_any_table_is_whole(rows: list[tuple[str, str]], width: int) -> None:
    cells = [[name, number, f"run{index}"] for index, (name, number) in enumerate(rows)]
    text = "\n".join(render(width, cells, [Column("name", is_numeric=False), Column("loss"), RUN_COLUMN]))
    assert all(re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text) for _, number in rows)
