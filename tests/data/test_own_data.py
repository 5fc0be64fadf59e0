"""Local files as people have them: what a file holds is what is trained on, or it is refused by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm import TrialConfig
from raylm.data import sources, table_files, text
from raylm.data.preparation import prepare
from raylm.data.text import TextFile
from raylm.errors import SweepError, UserError

TEXTS = [f"sentence {number}, of “them”\nwith\ttwo\r\nlines\u2028and\x85more\x0c" for number in range(20)]
Splits = list[list[str] | None]


def read(dataset: Path | str, **fields: Any) -> Splits:
    """Return the texts of the train, the validation and the test split."""
    splits = sources.read_splits(sources.resolve_source(TrialConfig(dataset=str(dataset), **fields).dataset_spec))
    return [
        None if split is None else ["".join(piece.text for piece in text) for text in split.texts] for split in splits
    ]


def error_of(dataset: Path | str, **fields: Any) -> str:
    """Return the message, of one line, with which a dataset is refused."""
    with pytest.raises(UserError) as caught:
        read(dataset, **fields)
    message = str(caught.value)
    assert len(message.removeprefix("this sweep has 1 mistake:\n").splitlines()) == 1
    assert Path(dataset).name in message or isinstance(caught.value, SweepError)
    return message


# ---- text files ---------------------------------------------------------------------------------------------------

ALL_SEPARATORS = "".join(f"word{number} and \x0cnext\u2028third\x85fourth\x1cfifth\n" for number in range(40))


@pytest.mark.parametrize(
    ("content", "num_validation_lines"),
    [
        (ALL_SEPARATORS, 4),
        (ALL_SEPARATORS.replace("\n", "\r\n"), 4),
        (ALL_SEPARATORS.replace("\n", "\r"), 4),
        ("no break at the end\n" * 20 + "here", 2),
        ("\n" * 30, 3),
        ("a\r\n\rb\n\r\n" * 10, 4),
        ("日本語のテキスト。\n" * 10, 1),
        ("a\n\ufeffb \u202e c \x1b[31m\n" * 10, 2),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 7, 2**20])
def test_both_splits_of_a_text_file_are_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, num_validation_lines: int, block_bytes: int
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "text.txt"
    file.write_bytes(content.encode())
    (train,), (validation,), test = read(file)  # type: ignore[misc]
    assert train + validation == content
    assert len(list(TextFile(file).iter_lines())) == 10 * num_validation_lines or num_validation_lines < 3
    validation_lines = validation.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    assert len(validation_lines) == num_validation_lines
    assert test is None


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    content=st.text(st.sampled_from("ab \n\r\x0c\u2028\x85\ufeffé日\x1c"), min_size=1, max_size=60),
    block_bytes=st.integers(1, 9),
)
def test_any_text_is_divided_without_a_change(
    tmp_path_factory: pytest.TempPathFactory, content: str, block_bytes: int
) -> None:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_bytes(content.encode())
    content = content.removeprefix("\ufeff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", max(3, block_bytes))  # a byte order mark has three bytes
        lines = list(TextFile(file).iter_lines())
        assert "".join(lines) == content
        assert lines == content.replace("\x0c", "X").splitlines(keepends=True) or set(content) & set(
            "\x0c\u2028\x85\x1c"
        )
        if len(lines) < 2:
            return
        train, validation = ("".join(part.read_text()) for part in TextFile(file).split_last_tenth())
        assert (train + validation, validation) == (content, "".join(lines[-max(1, len(lines) // 10) :]))
        pieces = list(TextFile(file).iter_pieces())
    assert sum(piece.num_words for piece in pieces) == len(content.split())
    assert sum(piece.num_bytes for piece in pieces) == len(content.encode())


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    content = "A first line\n" + "more text here\n" * 60
    (tmp_path / "bom.txt").write_text(content, encoding="utf-8-sig")
    (train,), (validation,), _ = read(tmp_path / "bom.txt")  # type: ignore[misc]
    assert train + validation == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\n".encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
        (b"\xfe\xff" + "text\n".encode("utf-16-be"), ["UTF-16"]),
        ("text\n".encode("utf-32"), ["UTF-32"]),
        ("text\n".encode("utf-16-le"), ["byte 1 is NUL"]),
        (b"one\ntwo\nth\0ree\n", ["byte 10 is NUL"]),
        (b"fine\n\xff\xfe not\n", ["byte 5", "UTF-8"]),
        (b"one\ntwo\nthr\xc3", ["byte 11", "UTF-8"]),
        (gzip.compress(b"one\ntwo\n", mtime=0), ["gzip", ".gz"]),
        (b"", ["no lines", "at least 2"]),
        (b"one line", ["1 line", "at least 2"]),
    ],
)
def test_file_that_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    message = error_of(tmp_path / "text.txt")
    assert all(word in message for word in words), message


def test_documents_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a\nb\n\n \nc\n\r\nd\n" * 5)
    assert read(file, documents="line") == [["a", "b", "c", "d"] * 4 + ["a", "b"], ["c", "d"], None]
    assert read(file, documents="blank-line") == [
        ["a\nb", "c", "d\na\nb", "c", "d\na\nb", "c", "d\na\nb", "c", "d\na\nb", "c"],
        ["d"],
        None,
    ]
    assert read(file, documents="line", max_documents=10) == [["a", "b", "c", "d"] * 2 + ["a"], ["b"], None]
    assert "set documents='line' or 'blank-line'" in error_of(file, max_documents=10)
    assert "leave text_column at None" in error_of(file, text_column="text")
    assert "1 document" in error_of(file, documents="file")


# ---- tables -------------------------------------------------------------------------------------------------------


def write_json_lines(file: Path, texts: Sequence[str | None]) -> None:
    file.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))


def write_json(file: Path, texts: Sequence[str | None]) -> None:
    file.write_text(json.dumps([{"id": 1, "text": text} for text in texts], indent=1, ensure_ascii=False))


def write_csv(file: Path, texts: Sequence[str | None], separator: str = ",") -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=separator).writerows([("id", "text"), *((1, text) for text in texts)])


def write_tsv(file: Path, texts: Sequence[str | None]) -> None:
    write_csv(file, texts, "\t")


def write_parquet(file: Path, texts: Sequence[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": texts}), file)


WRITERS: dict[str, Callable[[Path, Sequence[str | None]], None]] = {
    ".jsonl": write_json_lines,
    ".json": write_json,
    ".csv": write_csv,
    ".tsv": write_tsv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_row_of_a_table_is_a_document(tmp_path: Path, suffix: str) -> None:
    texts = [*TEXTS, "NA", "007", "null", ' "quoted" ', "1.50"]
    WRITERS[suffix](tmp_path / f"rows{suffix}", texts)
    assert read(tmp_path / f"rows{suffix}") == [texts[:23], texts[23:], None]
    assert read(tmp_path / f"rows{suffix}", max_documents=10) == [texts[:9], texts[9:10], None]
    assert "documents='line' is for text files" in error_of(tmp_path / f"rows{suffix}", documents="line")


def test_escapes_of_whole_characters_are_read(tmp_path: Path) -> None:
    texts = ["\U0001f600 \U0001f680", "\\ud83d \\\\ude00", "\ue000"]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
    assert read(tmp_path / "a.json") == [texts[:2], texts[2:], None]


def test_equal_rows_have_equal_tokens_in_every_form(tmp_path: Path) -> None:
    found = []
    for suffix, write in WRITERS.items():
        write(tmp_path / f"rows{suffix}", TEXTS)
        corpus = prepare(TrialConfig(dataset=str(tmp_path / f"rows{suffix}")).dataset_spec, None, "gpt2-nano")
        assert corpus.validation.num_words == sum(len(text.split()) for text in TEXTS[18:])
        assert corpus.validation.num_bytes == sum(len(text.encode()) for text in TEXTS[18:])
        found.append((corpus.train.tokens.tolist(), corpus.validation.tokens.tolist()))
    assert found == [found[0]] * len(WRITERS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_without_text_and_tables_of_one_row_are_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    WRITERS[suffix](file, ["only"])
    assert "has 1 row; expected at least 2" in error_of(file)
    if suffix not in (".csv", ".tsv"):  # where an empty cell is an empty text
        WRITERS[suffix](file, [*TEXTS, None])
        assert "row 20 of the train split has no text; remove such rows" in error_of(file)
    WRITERS[suffix](file, ["a", "", "b"])
    assert read(file) == [["a", ""], ["b"], None]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    suffix = {"gzip": ".gz", "bz2": ".bz2", "lzma": ".xz"}[compress.__module__]
    for name in ("rows.jsonl", "rows.csv"):
        WRITERS[Path(name).suffix](tmp_path / name, TEXTS)
        (tmp_path / f"{name}{suffix}").write_bytes(compress((tmp_path / name).read_bytes()))
        assert read(tmp_path / f"{name}{suffix}") == [TEXTS[:18], TEXTS[18:], None]
    (tmp_path / f"text.txt{suffix}").write_bytes(compress(ALL_SEPARATORS.encode()))
    (train,), (validation,), _ = read(tmp_path / f"text.txt{suffix}")  # type: ignore[misc]
    assert train + validation == ALL_SEPARATORS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", ["is empty"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\n', ["cannot be read as JSON", "row 1"]),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), ["UTF-16"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', ["UTF-8", "byte 27"]),
        ("a.jsonl", b'{"text": "x \\ud83d y"}\n' * 3, ["cannot be read as JSON", "surrogate"]),
        ("a.jsonl", b'{"text": {"a": "b"}}\n' * 3, ["no column `text` of strings", "text (nested)"]),
        ("a.jsonl", b'{"title": "a", "body": "b"}\n' * 3, ["text_column", "title (string), body (string)"]),
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n', mtime=0), ["gzip", ".gz"]),
        ("a.jsonl", b'"a text"\n"another"\n', ["a string on each line", "an object on each", "jq -c '{text: .}'"]),
        ("a.json", b'[{"text": "x \\ud83d y"}, {"text": "b"}]', ["byte 19", "half a surrogate pair"]),
        ("a.json", b'[{"text": "x \\\\\\ude00"}, {"text": "b"}]', ["half a surrogate pair"]),
        ("a.json", b'{"data": [{"text": "a"}]}', ["no column `text` of strings", "data (nested)"]),
        ("a.csv", b"id,text\n", ["has no columns"]),
        ("a.csv", b"id;text\n1;a\n2;b\n", ["separated by semicolons", "commas"]),
        ("a.tsv", b"id,text\n1,a\n2,b\n", ["separated by commas", "tabs"]),
        ("a.csv", b"id,text\n1,a,b\n2,c,d\n", ["line 2", "3 cells", "its header 2"]),
        ("a.csv", b"id,text\n1,a\n2\n", ["line 3", "1 cell,", "its header 2"]),
        ("a.csv", b'id,text\n1,"a" b\n2,c\n', ["line 2", "quotes"]),
        ("a.csv", b'id,text\n1,"a\n2,c\n', ["unexpected end", "quotes"]),
        ("a.csv", b"text,text\na,b\nc,d\n", ["two columns 'text'"]),
        ("a.csv", b"text,n\ncaf\xe9,1\nb,2\n", ["UTF-8", "byte 10"]),
        ("a.csv", b"text\na\n \nb\n", ["line 3", "white space without quotes"]),
        ("a.csv", b"text,n\na\0b,1\nb,2\n", ["byte 8 is NUL"]),
        ("a.csv", b"text\n1\n2\n", ["no column `text` of strings", "text (int64)"]),
        ("a.parquet", b"no table", ["cannot be read as Parquet"]),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), ["Parquet", "decompress"]),
        ("a.zip", b"PK\x03\x04", ["archive", "unpack"]),
        ("a.tar.gz", gzip.compress(b"a", mtime=0), ["archive", "unpack"]),
    ],
)
def test_table_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "elements", "command"),
    [
        ("my rows.json", [{"text": "\u3042"}] * 40, "cat '{}/my rows.json' | jq -c '.[]' > '{}/my rows.jsonl'"),
        ("rows.json.gz", ["some text"] * 40, "gzip -dc {}/rows.json.gz | jq -c '.[] | {{text: .}}' > {}/rows.jsonl"),
    ],
)
def test_array_that_is_too_large_is_refused_with_the_command_that_makes_lines_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, elements: list[Any], command: str
) -> None:
    text = json.dumps(elements, ensure_ascii=False).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    monkeypatch.setattr(table_files, "MAX_ARRAY_BYTES", len(text))
    read(tmp_path / name)
    monkeypatch.setattr(table_files, "MAX_ARRAY_BYTES", len(text) - 1)
    assert f"`{command.format(tmp_path, tmp_path)}`, and use {tmp_path}/" in error_of(tmp_path / name)


def test_cells_of_white_space_in_quotes_and_separators_in_a_name_are_read_as_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('"text,"\na\n" "\n\nb\n')
    train, validation, _ = read(tmp_path / "rows.csv")
    assert (train, validation) == (["a", " "], ["b"])
    (tmp_path / "rows.tsv").write_text("text\tbody\na\tb\n\t\nc\td\n")
    assert read(tmp_path / "rows.tsv")[:2] == [["a", ""], ["c"]]


def test_numbers_in_later_rows_of_a_csv_file_are_text_as_written(tmp_path: Path) -> None:
    texts = ["word"] * 3000 + ["007", "1.50"]
    write_csv(tmp_path / "rows.csv", texts)
    train, validation, _ = read(tmp_path / "rows.csv")
    assert [*(train or []), *(validation or [])] == texts


def test_only_column_of_strings_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": 1, "body": body}) + "\n" for body in TEXTS))
    assert read(tmp_path / "a.jsonl") == [TEXTS[:18], TEXTS[18:], None]
    assert "no column boddy; it has n (int64), body (string)" in error_of(tmp_path / "a.jsonl", text_column="boddy")
    assert "column n of its train split is not of strings" in error_of(tmp_path / "a.jsonl", text_column="n")


@pytest.mark.parametrize("texts", [["", " ", "\n"] * 5, [None, None]])
def test_only_the_test_split_may_have_no_text(tmp_path: Path, texts: list[str | None]) -> None:
    for name in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{name}.parquet", TEXTS)
    spec = TrialConfig(dataset=str(tmp_path)).dataset_spec
    assert prepare(spec, None, "gpt2-nano").test is not None
    write_parquet(tmp_path / "test.parquet", texts)
    assert prepare(spec, None, "gpt2-nano").test is None
    for name in ("validation", "train"):
        write_parquet(tmp_path / f"{name}.parquet", texts)
        expected = f"its {name} split has no text" if None not in texts else f"{name} (split|id).*text"
        with pytest.raises(UserError, match=expected):
            prepare(spec, None, "gpt2-nano")
        write_parquet(tmp_path / f"{name}.parquet", TEXTS)


# ---- folders and patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITERS)
def test_folder_with_a_file_for_each_split(tmp_path: Path, suffix: str) -> None:
    for name in ("train", "validation", "test"):
        WRITERS[suffix](tmp_path / f"{name}{suffix}", [f"{name} 1", f"{name} 2"])
    train, validation, test = ([f"{name} 1", f"{name} 2"] for name in ("train", "validation", "test"))
    assert read(tmp_path) == [train, validation, test]
    assert read(tmp_path, validation_split="test") == [train, test, None]
    assert read(tmp_path, train_split="test", max_documents=2) == [test, validation, None]
    assert "no dev split; it has train, validation, test" in error_of(tmp_path, validation_split="dev")


def test_folder_of_one_file_for_each_document(tmp_path: Path) -> None:
    folder = tmp_path / "[odd] #1? (folder)"
    (folder / "more").mkdir(parents=True)
    contents = [f"document {number}\nwith two lines\n" for number in range(11)]
    for number, content in enumerate(contents):
        (folder / ("more" if number == 10 else "") / f"{number:02}.txt").write_text(content)
    (folder / ".hidden.txt").write_text("not this")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    assert read(folder) == [contents[:10], contents[10:], None]
    assert read(folder, max_documents=4) == [contents[:3], contents[3:4], None]
    assert len(read(folder, documents="line")[0] or []) == 20


def test_pattern_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_json_lines(tmp_path / f"part-{number}.jsonl", [f"{number} a", f"{number} b"])
        (tmp_path / f"{number}.py").write_text(f"x = {number}\n")
    monkeypatch.chdir(tmp_path)
    assert read("part-*.jsonl") == [["0 a", "0 b", "1 a", "1 b", "2 a"], ["2 b"], None]
    assert read("./*.py") == [["x = 0\n", "x = 1\n"], ["x = 2\n"], None]
    assert "no such file" in error_of("none-*.jsonl")


def test_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "no files to read" in error_of(tmp_path)
    (tmp_path / "validation.txt").write_text("a\nb\n")
    assert "no train split; it has validation" in error_of(tmp_path)
    write_csv(tmp_path / "train.csv", TEXTS)
    assert "several forms: csv, text" in error_of(tmp_path)


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is not a file" in error_of(tmp_path / "pipe.txt")


def test_options_of_a_dataset_with_a_fixed_text_are_refused() -> None:
    with pytest.raises(SweepError) as caught:
        TrialConfig(dataset="imdb", text_column="text", max_documents=10)
    assert [problem.location for problem in caught.value.problems] == ["text_column", "max_documents"]
    assert "the text of imdb is fixed" in str(caught.value)


def test_datasets_of_save_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(20))})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows.select([3, 1])).save_to_disk(str(tmp_path / "several"))
    assert read(tmp_path / "one") == [TEXTS[:18], TEXTS[18:], None]
    assert read(tmp_path / "several") == [TEXTS[:18], TEXTS[18:], [TEXTS[3], TEXTS[1]]]


def test_home_folder_is_expanded_and_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    assert read("~/text.txt") == [["one\n"], ["two\n"], None]
    assert f"no such file in {tmp_path}, nor the folder 'texts'" in error_of("texts/nope.txt")
    assert f"no such file in {tmp_path}; did you mean 'text.txt'?" in error_of("test.txt")


# ---- identity -----------------------------------------------------------------------------------------------------


def fingerprint_of(file: Path, content: bytes, **fields: Any) -> str:
    file.write_bytes(content)
    return prepare(TrialConfig(dataset=str(file), **fields).dataset_spec, None, "gpt2-nano").fingerprint


LINES = b"one line\nanother line\n" * 20


def test_fingerprints_are_those_of_earlier_versions_where_the_text_is(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path / "text.txt", LINES) == "327a14a53e2cb7387c11"
    for name, content in (("train", b"a b\nc\n" * 10), ("validation", b"d e\n"), ("test", b"not used\r\n")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{name}.txt").write_bytes(content)
        if name != "train":
            spec = TrialConfig(dataset=str(tmp_path / "folder")).dataset_spec
            corpus = prepare(spec, None, "gpt2-nano")
            assert corpus.fingerprint == "e758e6f0bf6ba78cb8b2"
            assert (corpus.test is not None) == (name == "test")


def test_same_bytes_that_are_read_in_another_way_have_another_fingerprint(tmp_path: Path) -> None:
    marked, crlf = b"\xef\xbb\xbf" + LINES, LINES.replace(b"\n", b"\r\n")
    rows = b"text\n" + b"some words\tand others\n" * 30
    found = [
        *(fingerprint_of(tmp_path / "text.txt", content) for content in (LINES, LINES[:-1], marked, crlf)),
        fingerprint_of(tmp_path / "text.txt", LINES, documents="line"),
        fingerprint_of(tmp_path / "text.txt", LINES, documents="line", max_documents=10),
        fingerprint_of(tmp_path / "rows.csv", rows),
        fingerprint_of(tmp_path / "rows.txt", rows),
    ]
    for folder, name in (("one", "validation"), ("two", "test")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.csv").write_bytes(rows)
        found.append(fingerprint_of(tmp_path / folder / f"{name}.csv", rows))
        found[-1] = prepare(TrialConfig(dataset=str(tmp_path / folder)).dataset_spec, None, "gpt2-nano").fingerprint
    assert len(set(found)) == len(found)
