"""Examples of docs/own-data.md: each form of files is read as the page says."""

from __future__ import annotations

import ast
import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from raylm import Sweep, TrialConfig
from raylm.data import sources

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text()
EXAMPLES = [ast.literal_eval(text) for text in re.findall(r"^\| `(\{.*?\})` \|", PAGE, re.MULTILINE)]
TEXTS = [f"Text {number} of twelve.\nIt has two lines." for number in range(12)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("\n".join(TEXTS))
    Path("poems.txt").write_text("\n\n".join(TEXTS))
    Path("tweets.txt").write_text("\n".join(text.replace("\n", " ") for text in TEXTS))
    for name in ("articles", "src/more", "parts", "splits"):
        Path(name).mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        Path("articles", f"{number:02}.txt").write_text(text)
        Path("src" if number < 6 else "src/more", f"{number:02}.py").write_text(text)
        Path("parts", f"{number:02}.jsonl").write_text(json.dumps({"text": text}))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    Path("rows.jsonl").write_text(lines)
    Path("rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    Path("rows.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    Path("reviews.csv").write_text("title,review\n" + "".join(f'a,"{text}"\n' for text in TEXTS))
    Path("rows.tsv").write_text("stars\ttext\n" + "".join(f'5\t"{text}"\n' for text in TEXTS))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), "rows.parquet")
    for split in ("train", "validation", "test"):
        Path("splits", f"{split}.jsonl").write_text(lines)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk("saved")
    return tmp_path


def test_examples_of_forms_are_read_as_the_page_says(folder: Path) -> None:
    local = [fields for fields in EXAMPLES if not fields["dataset"].startswith("owner/")]
    assert len(local) == 14
    for fields in local:
        train, validation, test = sources.read_splits(sources.resolve_source(TrialConfig(**fields).dataset_spec))
        texts = ["".join(piece.text for piece in text) for split in (train, validation) for text in split.texts]
        assert train.is_documents == (fields["dataset"] != "book.txt")
        assert (test is not None) == (fields["dataset"] == "splits/")
        if fields["dataset"] == "book.txt":
            assert "".join(texts) == "\n".join(TEXTS)
        elif fields["dataset"] == "splits/":
            assert texts == TEXTS * 2
        else:
            assert [text.replace("\n", " ") for text in texts] == [text.replace("\n", " ") for text in TEXTS], fields


def test_names_of_datasets_of_the_hub_are_valid() -> None:
    names = [fields for fields in EXAMPLES if fields["dataset"].startswith("owner/")]
    assert len(names) == 4
    for fields in names:
        assert TrialConfig(**fields).dataset_spec.dataset.startswith("owner/name")


def test_sweep_of_the_page_is_valid(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(code, namespace)
    sweep = namespace["sweep"]
    assert isinstance(sweep, Sweep)
    assert [trial.text_column for trial in sweep.trials()] == ["review", "review"]
