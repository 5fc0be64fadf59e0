"""Datasets of a Hub that have other forms than expected: read, or refused in one line that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import serve_hub

from raylm.data import hub, hub_errors
from raylm.errors import UserError

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "read_datasets.py"
TEXTS = [f"text {number}" for number in range(20)]
CONFIGS = "configs:\n- config_name: one\n  data_files: one/*.parquet\n- config_name: two\n  data_files: two/*.parquet\n"


def write_repository(root: Path, name: str, files: Mapping[str, Any]) -> None:
    """Write a dataset of a stand-in for the Hub: columns as Parquet, texts as they are."""
    for path, content in files.items():
        file = root / "datasets" / "me" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content)
        else:
            pyarrow.parquet.write_table(pyarrow.table(content), file)


def write_hub(root: Path) -> Path:
    """Write all repositories of the tests below."""
    train, validation, test = (f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test"))
    repositories: dict[str, Mapping[str, Any]] = {
        "splits": {train: {"text": TEXTS}, validation: {"text": ["v"]}, test: {"text": ["t"]}},
        "column": {train: {"body": TEXTS, "label": list(range(20))}},
        "columns": {train: {"title": TEXTS, "body": TEXTS}},
        "lines": {"train.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)},
        "dev": {train: {"text": TEXTS}, "data/dev-00000-of-00001.parquet": {"text": ["d"]}},
        "configs": {
            "README.md": f"---\n{CONFIGS}---\n",
            "one/a.parquet": {"text": TEXTS},
            "two/a.parquet": {"text": ["b", "c"]},
        },
        "other-column": {train: {"text": TEXTS}, validation: {"sentence": ["v"]}},
        "more-columns": {train: {"text": TEXTS, "label": [0] * 20}, validation: {"text": ["v"]}},
        "test-without-text": {train: {"text": TEXTS}, validation: {"text": ["v"]}, test: {"label": [1]}},
        "one-row": {train: {"text": ["only"]}},
        "none": {train: {"text": [*TEXTS, None]}, validation: {"text": ["v"]}},
        "test-only": {test: {"text": TEXTS}},
        "script": {"script.py": "import datasets\n"},
        "empty": {"README.md": "nothing\n"},
        "numbers": {train: {"text": list(range(20))}},
    }
    for name, files in repositories.items():
        write_repository(root, name, files)
    return root


READ: list[tuple[dict[str, Any], list[Sequence[str] | None]]] = [
    ({"dataset": "me/splits"}, [TEXTS, ["v"], ["t"]]),
    ({"dataset": "me/splits", "max_documents": 3}, [TEXTS[:3], ["v"], ["t"]]),
    ({"dataset": "me/splits", "train_split": "validation", "validation_split": "test"}, [["v"], ["t"], None]),
    ({"dataset": "me/splits@main"}, [TEXTS, ["v"], ["t"]]),
    ({"dataset": "me/test-without-text"}, [TEXTS, ["v"], None]),
    ({"dataset": "me/more-columns"}, [TEXTS, ["v"], None]),
    ({"dataset": "me/column"}, [TEXTS[:18], TEXTS[18:], None]),
    ({"dataset": "me/column", "max_documents": 10}, [TEXTS[:9], TEXTS[9:10], None]),
    ({"dataset": "me/columns", "text_column": "body"}, [TEXTS[:18], TEXTS[18:], None]),
    ({"dataset": "me/lines"}, [TEXTS[:18], TEXTS[18:], None]),
    ({"dataset": "me/dev"}, [TEXTS, ["d"], None]),
    ({"dataset": "me/configs:two"}, [["b"], ["c"], None]),
    ({"dataset": "me/configs:two@main"}, [["b"], ["c"], None]),
    ({"dataset": "me/test-only", "train_split": "test"}, [TEXTS[:18], TEXTS[18:], None]),
]
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"dataset": "me/configs"}, ["several configurations: one, two", "me/configs:one"]),
    ({"dataset": "me/configs:three"}, ["no such configuration", "one, two"]),
    ({"dataset": "me/splits@v9"}, ["me/splits@v9", "no such branch, tag or commit"]),
    (
        {"dataset": "me/other-column"},
        ["its splits have different columns: train text (string); validation sentence (string)"],
    ),
    ({"dataset": "me/one-row"}, ["has 1 row; expected at least 2: its last tenth is validation"]),
    ({"dataset": "me/none"}, ["row 20 of the train split has no text; remove"]),
    ({"dataset": "me/test-only"}, ["no train split; it has test", "train_split"]),
    ({"dataset": "me/splits", "validation_split": "dev"}, ["no dev split; it has train, validation, test"]),
    ({"dataset": "me/columns"}, ["several columns of strings", "text_column", "title (string), body (string)"]),
    ({"dataset": "me/columns", "text_column": "text"}, ["no column text", "title (string), body (string)"]),
    ({"dataset": "me/numbers"}, ["no column `text` of strings", "text (int64)"]),
    ({"dataset": "me/script"}, ["me/script"]),
    ({"dataset": "me/empty"}, ["no data files that can be read"]),
    ({"dataset": "me/nothing"}, ["not found", "check the spelling", "no file or folder of this name either"]),
    ({"dataset": "me/lines", "documents": "line"}, ["documents='line' is for text files"]),
]


def run_program(folder: Path, endpoint: str, fields: Sequence[Mapping[str, Any]], *arguments: str) -> list[Any]:
    """Return the splits or messages of datasets, read by one process with empty caches."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    caches = {"HF_HOME": str(folder / "hf"), "RAYLM_CACHE": str(folder / "raylm")}
    command = [sys.executable, str(PROGRAM), json.dumps(fields), *arguments]
    env = {**os.environ, **variables, **caches}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    answers: list[Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a stand-in for the Hub with the datasets above."""
    with serve_hub("--root", str(write_hub(tmp_path_factory.mktemp("hub")))) as url:
        yield url


@pytest.fixture(scope="module")
def answers(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Splits or messages of all datasets above."""
    return run_program(tmp_path_factory.mktemp("caches"), endpoint, [fields for fields, _ in (*READ, *REFUSED)])


def test_columns_splits_subsets_and_revisions_are_read(answers: list[Any]) -> None:
    for (fields, expected), answer in zip(READ, answers[: len(READ)], strict=True):
        assert answer == expected, fields


def test_refused_datasets_are_told_in_one_line_with_what_to_do(answers: list[Any]) -> None:
    for (fields, words), answer in zip(REFUSED, answers[len(READ) :], strict=True):
        assert isinstance(answer, str), fields
        assert len(answer.splitlines()) == 1, answer
        assert all(word in answer for word in [fields["dataset"].partition(":")[0], *words]), answer


def test_streamed_datasets_have_the_same_texts(endpoint: str, tmp_path: Path) -> None:
    expected = [(fields, splits) for fields, splits in READ if "max_documents" in fields]
    for name in ("splits", "column"):
        splits = next(splits for fields, splits in READ if fields == {"dataset": f"me/{name}"})
        expected.append(({"dataset": f"me/{name}", "max_train_tokens": 10}, splits))
    answers = run_program(tmp_path, endpoint, [fields for fields, _ in expected], "0")
    assert answers == [splits for _, splits in expected]
    downloaded = {file.relative_to(tmp_path / "hf" / "datasets").parts[0] for file in tmp_path.rglob("*.arrow")}
    assert downloaded == {"me___column"}, "whose last tenth is validation"


class RefusedError(Exception):
    """Error with a response, as HTTP clients raise it."""

    def __init__(self, status: int) -> None:
        self.response = type("Response", (), {"status_code": status})


def test_refused_token_is_told_apart_from_a_missing_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    message = str(hub_errors.to_user_error(RefusedError(401), "dataset me/texts"))
    assert "refuses your token" in message
    assert "unset HF_TOKEN" in message
    monkeypatch.delenv("HF_TOKEN")
    assert "not found" in str(hub_errors.to_user_error(RefusedError(401), "dataset me/texts"))


@pytest.mark.parametrize("endpoint", ["hub.example:8080", "localhost", "", "http://", "ftp://hub.example"])
def test_address_of_the_hub_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(UserError, match=r"^HF_ENDPOINT: got .*; expected http://"):
        hub.call_with_retries(lambda: None, "dataset me/texts")
