"""Tables in local files, opened through `datasets` as streams: JSON, CSV, Parquet, and what `save_to_disk` wrote."""

from __future__ import annotations

import csv
import glob
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raylm.config.dataset import COMPRESSED_SUFFIXES
from raylm.data.tables import STREAMED_ROWS_PER_BATCH, FileRows, column_types, iter_tables
from raylm.data.text import BLOCK_BYTES, TextFile
from raylm.errors import UserError, one_line
from raylm.units import pluralize

CHUNK_BYTES = 8 * 2**20
"""Approximate bytes of CSV that are parsed at a time."""
MAX_CHUNK_ROWS = 1_000
MAX_ARRAY_BYTES = 64 * 2**20
"""Largest file that is a single JSON array, which `datasets` reads whole into memory."""
READ_COMMANDS = {"": "cat", ".gz": "gzip -dc", ".zst": "zstd -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc"}
"""Commands that write the content of a file, by its compression."""
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F][0-9a-fA-F]", r"\\u[dD][c-fC-F]"
HALF_SURROGATE_PAIR = re.compile(rf"(?<!\\)(?:\\\\)*(?:{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW})")
"""Escape in JSON of half a character, behind an even number of backslashes."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class TableFiles:
    """Files of one form."""

    subject: str
    """Beginning of error messages, as `dataset rows.csv`."""
    form: str
    """`json`, `csv`, `tsv` or `parquet`."""
    splits: Mapping[str, Sequence[Path]]
    """Files of each split."""

    def open(self) -> dict[str, FileRows]:
        """Return the rows of each split.

        Raises:
            UserError: if the beginning of a file cannot be read as a table.
        """
        for path in self._paths():
            self._check_file(path)
        try:
            return {name: self._open_split(name) for name in self.splits}
        except Exception as error:  # datasets, fsspec, pandas and pyarrow each raise their own
            raise self._to_user_error(error) from error

    def guard(self, texts: Iterator[str]) -> Iterator[str]:
        """Yield texts, with one message for each error of the libraries that read them."""
        try:
            yield from texts
        except Exception as error:
            raise self._to_user_error(error) from error

    def _paths(self) -> list[Path]:
        return [path for paths in self.splits.values() for path in paths]

    def _check_file(self, path: Path) -> None:
        if "::" in str(path):
            raise UserError(f"dataset {path}: tables are not read from a path with '::'; rename it")
        if self.form == "parquet":
            if path.name.lower().endswith(COMPRESSED_SUFFIXES):
                raise UserError(f"dataset {path} is Parquet, which is not read from a compressed file; decompress it")
            return
        first = next(TextFile(path).read_text(), "").lstrip()
        if not first:
            raise UserError(f"dataset {path} is empty; expected a table with a row for each document")
        if self.form != "json":
            _check_csv(path, self._separator)
        elif first.startswith("["):
            _check_array(path)
        elif first.startswith('"'):
            advice = "as by `jq -c '{text: .}'`"
            raise UserError(f"dataset {path} has a string on each line; expected an object on each, {advice}")

    def _open_split(self, name: str) -> FileRows:
        load = partial(self._load, name)
        rows = load()
        types = column_types(rows)
        if self.form in ("csv", "tsv"):
            return FileRows(types, lambda column: iter_tables(load(all_strings=list(types))))
        if self.form == "parquet":
            return FileRows(types, partial(_read_parquet, self.splits[name]))
        return FileRows(types, lambda column: iter_tables(rows))

    def _load(self, name: str, *, all_strings: Sequence[str] = ()) -> Any:
        """Return the rows of a split as a stream.

        Args:
            name: name of the split.
            all_strings: names of the columns of a CSV file, whose cells are then read as they are.
        """
        datasets, options = import_datasets(), dict[str, Any]()
        if self.form in ("csv", "tsv"):  # an empty cell is an empty text, and "NA" is a text
            options |= {"keep_default_na": False, "index_col": False, "sep": self._separator}
            options["chunksize"] = min(map(_rows_per_chunk, self.splits[name]))
            if all_strings:
                options["features"] = datasets.Features({column: datasets.Value("string") for column in all_strings})
        paths = [glob.escape(str(path.absolute())) for path in self.splits[name]]
        builder = "csv" if self.form == "tsv" else self.form
        return datasets.load_dataset(builder, data_files={name: paths}, split=name, streaming=True, **options)

    @property
    def _separator(self) -> str:
        return "\t" if self.form == "tsv" else ","

    def _to_user_error(self, error: Exception) -> UserError:
        """Return the one message for an error of a reading library: with the byte's place if it is not UTF-8."""
        if isinstance(error, UserError):
            return error
        try:
            for path in self._paths() if self.form != "parquet" else []:
                for _ in TextFile(path).read_text():
                    pass
        except UserError as not_text:
            return not_text
        form = {"json": "JSON lines or a JSON array of rows", "csv": "CSV", "tsv": "TSV"}.get(self.form, "Parquet")
        if type(error).__name__ == "CastError" or "does not exist in schema" in str(error):
            advice = "keep the column of text alone" + (", as by `jq -c '{text}'`" if self.form == "json" else "")
            return UserError(
                f"{self.subject}: some of its rows have other columns or types than the first ones; {advice}"
            )
        cause = error
        while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        return UserError(f"{self.subject} cannot be read as {form}: {one_line(cause)}")


def _advise_json_lines(path: Path, first: str) -> str:
    """Return how to write the elements of a JSON array as lines.

    Args:
        path: file of the array.
        first: beginning of its text.
    """
    suffix = path.suffix.lower() if path.suffix.lower() in COMPRESSED_SUFFIXES else ""
    lines = (path.with_suffix("") if suffix else path).with_suffix(".jsonl")
    elements = ".[] | {text: .}" if first.lstrip().removeprefix("[").lstrip().startswith('"') else ".[]"
    command = f"{READ_COMMANDS[suffix]} {shlex.quote(str(path))} | jq -c '{elements}' > {shlex.quote(str(lines))}"
    return f"write each element on a line, as by `{command}`, and use {lines} as the dataset"


def _check_array(path: Path) -> None:
    """Check that a JSON array can be read: `datasets` holds it in memory, and drops halves of surrogate pairs.

    Raises:
        UserError: if it is too large, or has an escape that is no character.
    """
    size, blocks = 0, list[str]()
    for block in TextFile(path).read_text():
        blocks.append(block)
        size += len(block.encode())
        if size > MAX_ARRAY_BYTES:
            limit = f"more than {MAX_ARRAY_BYTES // 2**20} MiB in one JSON array, which must be in memory whole"
            raise UserError(f"dataset {path} has {limit}; {_advise_json_lines(path, blocks[0])}")
    text = "".join(blocks)
    if match := HALF_SURROGATE_PAIR.search(text):
        byte = len(text[: match.end()].encode())
        raise UserError(
            f"dataset {path}: the escape before byte {byte:,} is half a surrogate pair; expected both halves"
        )


def _check_csv(path: Path, separator: str) -> None:
    """Check that each record of a CSV file has the cells of its header, and that quotes enclose whole cells.

    pandas shifts the columns of longer records, fills shorter ones with empty cells, drops quotes within a cell, and
    skips the records of a single column that are white space.

    Raises:
        UserError: if one of these does not hold.
    """
    csv.field_size_limit(sys.maxsize)  # of this process: a cell may be a book
    last_line = ""

    def iter_lines() -> Iterator[str]:
        nonlocal last_line
        for line in TextFile(path).iter_lines():
            last_line = line
            yield line

    reader = csv.reader(iter_lines(), delimiter=separator, strict=True)
    try:
        header = next(reader)
        others = {other: label for other, label in SEPARATORS.items() if other != separator}
        found = [label for other, label in others.items() if len(header) == 1 and other in header[0]]
        if found:
            suffix = ".tsv" if separator == "	" else ".csv"
            expected = f"{SEPARATORS[separator]}, as its name ends in {suffix}"
            raise UserError(f"dataset {path}: its header is separated by {found[0]}; expected {expected}")
        if twice := [name for number, name in enumerate(header) if name in header[:number]]:
            raise UserError(f"dataset {path} has two columns {twice[0]!r}; rename one")
        for record in reader:
            if record and len(record) != len(header):
                place = f"the record that ends on line {reader.line_num:,} has {pluralize(len(record), 'cell')}"
                advice = "quote cells that contain a separator or a line break"
                raise UserError(f"dataset {path}: {place}, its header {len(header)}; {advice}")
            if len(record) == 1 and not last_line.strip():
                problem = f"line {reader.line_num:,} is a cell of white space without quotes"
                raise UserError(f"dataset {path}: {problem}; enclose it in quotes, or remove it")
    except csv.Error as error:
        advice = "enclose cells with quotes in quotes, and double the quotes in them"
        raise UserError(f"dataset {path}: line {reader.line_num:,}: {error}; {advice}") from None


def _rows_per_chunk(path: Path) -> int:
    """Return the number of rows of about `CHUNK_BYTES` by the size of the first rows of a CSV file."""
    text = next(TextFile(path).read_text(), "")
    num_rows = sum(part.count("\n") for part in text.split('"')[::2])  # without line breaks in quotes
    return max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES * num_rows // max(1, len(text))))


def _read_parquet(paths: Sequence[Path], column: str) -> Iterator[Any]:
    """Yield a column as Arrow record batches; `datasets` would hold a row group in memory, which may be the file."""
    from pyarrow.parquet import ParquetFile

    for path in paths:
        with ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=STREAMED_ROWS_PER_BATCH, columns=[column], use_threads=False)


def load_saved(subject: str, folder: Path) -> dict[str, Any]:
    """Return the tables that `save_to_disk` wrote, by split; those of a single dataset are its `train`.

    Raises:
        UserError: if they cannot be opened.
    """
    datasets = import_datasets()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets, pyarrow and json each raise their own
        raise UserError(f"{subject} cannot be opened as saved by save_to_disk: {one_line(error)}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def import_datasets() -> Any:
    """Return the library `datasets`, without its progress bars, its log of errors, which raylm reports, and its counts.

    It requests a page of the Hub to count the use of each builder, also for local files.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets
