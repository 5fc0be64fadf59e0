"""Random tables: each row a document as it was written, or refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from fuzz_trials import (
    LEARNING_RATE,
    Texts,
    assert_equal,
    encode,
    expected_losses,
    fuzz,
    load_nano,
    temporary_folder,
    train,
    train_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.sampled_from(["text", "text", "body", "label", "Text", "的", "a b", "1", "text,", 'a"b', "列\n2"])
DOCUMENTS = st.one_of(
    st.lists(
        st.sampled_from(
            ["of", "the", " ", "\n", "\r\n", "\r", ",", ";", '"', "\t", "的", "🙂", "'", "\\", "\x0b", "\u2028"]
        )
    ).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "NA",
            "null",
            "None",
            "nan",
            "007",
            "1",
            "1.50",
            "True",
            "2020-01-01",
            "[1]",
            "{}",
            "#",
            "\ufeff",
            "a\0b",
        ]
    ),
)
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "string": DOCUMENTS,
    "int": st.integers(-(2**40), 2**40),
    "float": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "bool": st.booleans(),
    "list": st.lists(st.integers(0, 9), min_size=1, max_size=3),
    "dict": st.fixed_dictionaries({"role": DOCUMENTS}),
}


@st.composite
def tables(draw: st.DrawFn, kinds: list[str]) -> dict[str, list[Any]]:
    """Draw columns of equal length by name; the first one is of strings, one of its cells may be None."""
    number = draw(st.integers(2, 25))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    table = {}
    for index, name in enumerate(names):
        cells = CELLS["string" if index == 0 else draw(st.sampled_from(kinds))]
        table[name] = draw(st.lists(cells, min_size=number, max_size=number))
    if draw(st.booleans()):
        table[names[0]][0], table[names[0]][-1] = "first of all\n", " the last one"
    if draw(st.integers(0, 9)) == 0:
        table[names[0]][draw(st.integers(0, number - 1))] = None
    return table


def rows_of(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]


def write_jsonl(path: Path, table: dict[str, list[Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(table)))


def write_unescaped_jsonl_gz(path: Path, table: dict[str, list[Any]]) -> None:
    path.write_bytes(gzip.compress("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows_of(table)).encode()))


def write_json(path: Path, table: dict[str, list[Any]]) -> None:
    path.write_text(json.dumps(rows_of(table), indent=1))


def write_parquet(path: Path, table: dict[str, list[Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=3)


def write_saved(path: Path, table: dict[str, list[Any]]) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path, dict[str, list[Any]]], None]] = {
    "data.jsonl": write_jsonl,
    "data.jsonl.gz": write_unescaped_jsonl_gz,
    "data.json": write_json,
    "data.parquet": write_parquet,
    "data": write_saved,
}


def check(folder: Path, dataset: Path, documents: list[Any], refusals: list[str], fields: dict[str, Any]) -> None:
    """Train on a table and compare tokens and losses.

    Args:
        folder: folder of the example.
        dataset: the table.
        documents: cells of the column of text.
        refusals: words of the messages that it may be refused with, at the beginning of which it is named; a table
            without any must be trained on.
        fields: fields of the trial.
    """
    trial = {"dataset": str(dataset), "learning_rate": LEARNING_RATE, "batch_size": 8, "context_length": 3, **fields}
    trial["max_train_tokens"] = 16
    used = documents[: fields.get("max_documents")]
    number = max(1, len(used) // 10)
    refusals = refusals + (["has no text"] if None in used else [])
    if None not in used:
        texts = Texts(used[:-number], used[-number:], is_documents=True)
        refusals = refusals + (["split has no text"] if texts.lacks_words else [])
    found = train(folder, **trial)
    if isinstance(found, str):
        if "needs at least 2 for one window" in found:
            return
        assert dataset.name in found and any(words in found for words in refusals), found
        return
    assert None not in used and not texts.lacks_words
    tokenizer = train_tokenizer(texts)
    assert encode(tokenizer, texts.train, is_documents=True) == found.train_tokens
    assert_equal(found, expected_losses(trial, texts, tokenizer, load_nano(tokenizer), 0))


@fuzz(70)
@given(
    table=tables(["string", "int", "float", "bool", "list", "dict"]),
    name=st.sampled_from(sorted(WRITERS)),
    limit=st.none() | st.integers(2, 30),
)
def test_typed_table_is_trained_on_as_it_is_or_refused(
    table: dict[str, list[Any]], name: str, limit: int | None
) -> None:
    strings = [key for key, cells in table.items() if any(isinstance(cell, str) for cell in cells)]
    fields: dict[str, Any] = {"max_documents": limit} if limit else {}
    column = next(iter(table))
    refusals: list[str] = []
    if "text" in table and "text" not in strings:
        refusals = ["not of strings", "no column `text` of strings", "several columns", "split has no"]
    if not strings or all(cell is None for cell in table[column]):
        refusals = ["no column", "several columns"]
    elif "text" in strings:
        column = "text"
    elif len(strings) > 1:
        fields["text_column"] = column
    elif strings:
        column = strings[0]
    with temporary_folder() as folder:
        WRITERS[name](folder / name, table)
        check(folder, folder / name, table[column], refusals, fields)


@fuzz(70)
@given(
    table=tables(["string", "int", "float", "bool"]),
    suffix=st.sampled_from([".csv", ".tsv", ".csv.gz"]),
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]),
    mark=st.sampled_from(["", "", "\ufeff"]),
)
def test_separated_table_is_trained_on_as_it_is_or_refused(
    table: dict[str, list[Any]], suffix: str, style: tuple[str, Any], mark: str
) -> None:
    file = io.StringIO(newline="")
    delimiter = "\t" if suffix == ".tsv" else ","
    writer = csv.writer(file, delimiter=delimiter, lineterminator=style[0], quoting=style[1])
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    data = (mark + file.getvalue()).encode()
    column = next(iter(table))
    documents = ["" if cell is None else str(cell) for cell in table[column]]
    refusals = ["NUL"] if "\0" in file.getvalue() else []
    if len(table) == 1 and style[1] == csv.QUOTE_MINIMAL and any(text.isspace() for text in documents):
        refusals += ["white space without quotes"]
    if all(is_plain(text) for text in documents):
        refusals += ["not of strings"]
    if len(table) == 1 and any(other in column for other in ",;\t|" if other != delimiter):
        refusals += ["its header is separated by"]
    with temporary_folder() as folder:
        path = folder / f"data{suffix}"
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        check(folder, path, documents, refusals, {"text_column": column})


def is_plain(text: str) -> bool:
    """Return whether a cell may be taken for a number or a truth value."""
    try:
        float(text)
    except ValueError:
        return text in ("", "True", "False")
    return True


JSON_PIECES = [
    '{"text": "a row"}\n',
    '{"text": "another"}\r\n',
    '{"text": 1}\n',
    '{"text": null}\n',
    '{"text": "\\ud800"}\n',
    '{"text": "\\u0000"}\n',
    '{"text": {"a": 1}}\n',
    '{"text": "a", "text": "b"}\n',
    '{"other": "x"}\n',
]
OTHER_PIECES = ["text\n", "text,n\n", "a,1\n", "b\t2\n", "#x\n", "1e400\n", "NaN", "PAR1", "\ufeff"]
CHARACTERS = "[],{}\"\n \r\\\0'\x1a"
PIECES = st.sampled_from([*JSON_PIECES, *OTHER_PIECES, *CHARACTERS])


@fuzz(60)
@given(
    data=st.lists(PIECES, max_size=12).map("".join).map(str.encode) | st.binary(max_size=80),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".csv.bz2"]),
)
def test_table_of_any_bytes_is_trained_on_or_refused(data: bytes, suffix: str) -> None:
    with temporary_folder() as folder:
        path = folder / f"data{suffix}"
        path.write_bytes(data if path.suffix != ".gz" else gzip.compress(data))
        found = train(folder, dataset=str(path), context_length=2, max_train_tokens=1)
        assert not isinstance(found, str) or "data" in found
