"""Text sources: cleaning, splits, pieces, and messages of a hub that cannot give a dataset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
from conftest import HUB_DIR, serve_hub

from raylm.data import hub, sources, tokenizer, wikitext
from raylm.data.text import Piece
from raylm.errors import UserError

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" = Homarus gammarus = \n", "= Homarus gammarus ="),
        (" = = = Early life = = = \n", "=== Early life ==="),
        ("", ""),
        (" up to 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) . \n", "up to 0.7 – 2.2 kg (1.5 lb)."),
        (" 20 @,@ 000 well @-@ known <unk> , he message : ", "20,000 well-known <unk>, he message:"),
        (' only becoming " lobster red " on cooking . ', 'only becoming "lobster red" on cooking.'),
        (" it 's the lobsters ' claws , didn 't we ? ", "it's the lobsters' claws, didn't we?"),
        (" ( <unk> ) [ 1 ] 5 % of $ 3 ", "(<unk>) [1] 5% of $3"),
    ],
)
def test_wikitext_is_detokenized(row: str, text: str) -> None:
    assert wikitext.detokenize(row) == text


def test_wikitext_counts_one_word_per_line_end() -> None:
    split = wikitext.build_split(["", " = A = \n", " b , c \n"])
    (piece,) = split.pieces
    assert piece == Piece("\n= A =\nb, c\n", num_words=6 + 3, num_bytes=16)
    assert not split.is_documents


def test_imdb_is_shuffled_and_split_nine_to_one() -> None:
    reviews = [f"review {number}" for number in range(50)]
    train, validation = ([piece.text for piece in split.pieces] for split in sources._split_imdb(reviews))
    assert (len(train), len(validation)) == (45, 5)
    assert sorted([*train, *validation]) == sorted(reviews)
    assert train != reviews[:45]
    assert [piece.text for piece in sources._split_imdb(reviews)[0].pieces] == train


def test_training_a_tokenizer_is_deterministic() -> None:
    text = [[topics[name]] for name in sorted(topics)[:20]]
    first, second = tokenizer.train(text), tokenizer.train(text)
    assert tokenizer.serialize_files(first[0]) == tokenizer.serialize_files(second[0])
    assert not first[1], "no word is too long to be trained on"


def run_program(name: str, *arguments: str, env: dict[str, str]) -> str:
    """Return what a program of tests/programs prints."""
    command = [sys.executable, str(PROGRAMS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hub_corpora_have_the_token_word_ratio_of_the_reference_table(hub_env: dict[str, str]) -> None:
    sizes = json.loads(run_program("prepare_corpora.py", "wikitext2", "imdb", env=hub_env))
    wikitext2, imdb = sizes["wikitext2"], sizes["imdb"]
    assert wikitext2["validation_words"] == 217_646
    assert wikitext2["validation_tokens"] / wikitext2["validation_words"] == pytest.approx(1.119, abs=0.003)
    assert 2_250_000 < wikitext2["train_tokens"] < 2_400_000
    assert (wikitext2["vocab_size"], wikitext2["eos_token_id"]) == (50257, 50256)
    # of the stand-in's 7,500 reviews; 1.284 to 1.291 on all of them
    assert 1.27 < imdb["validation_tokens"] / imdb["validation_words"] < 1.30


def hub_variables(endpoint: str, folder: Path) -> dict[str, str]:
    """Return the environment variables for a hub's address and empty caches."""
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "RAYLM_CACHE": str(folder / "raylm")}


def error_of_prepare(dataset: str, environment: dict[str, str]) -> str:
    """Return the message, of one line, with which preparing a dataset fails."""
    output = run_program("prepare_corpus.py", dataset, env=environment)
    assert len(output.splitlines()) == 1
    return output


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nobody/nothing", ["dataset nobody/nothing", "not found"]),
        ("Salesforce/wikitext", ["dataset Salesforce/wikitext", "onfig"]),
        ("Salesforce/wikitext:wikitext-9", ["wikitext-9"]),
        ("wikitext103", ["dataset wikitext103", "no train split", "validation"]),
    ],
)
def test_dataset_that_the_hub_lacks_is_an_error(hub_env: dict[str, str], dataset: str, words: list[str]) -> None:
    message = error_of_prepare(dataset, hub_env)
    assert all(word in message for word in words), message


def test_truncated_file_of_the_hub_is_a_one_line_error(tmp_path: Path) -> None:
    if not HUB_DIR.exists():
        pytest.skip("the stand-in for the Hugging Face Hub (../shared/hub) is not here")
    folder = tmp_path / "root" / "datasets" / "stanfordnlp" / "imdb"
    shutil.copytree(HUB_DIR / "datasets" / "stanfordnlp" / "imdb", folder)
    (file,) = folder.rglob("train-*.parquet")
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[: len(content) // 2])
    with serve_hub("--root", str(tmp_path / "root")) as endpoint:
        message = error_of_prepare("imdb", {**os.environ, "HF_HUB_OFFLINE": "0", **hub_variables(endpoint, tmp_path)})
    assert "dataset imdb: a file of it is damaged or truncated" in message
    assert "delete it from" in message


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_unreachable_hub_is_a_one_line_error(tmp_path: Path, endpoint: str) -> None:
    env = {**os.environ, **hub_variables(endpoint, tmp_path)}
    assert f"{endpoint} cannot be reached (no connection)" in error_of_prepare("imdb", {**env, "HF_HUB_OFFLINE": "0"})
    assert "HF_HUB_OFFLINE is set" in error_of_prepare("imdb", {**env, "HF_HUB_OFFLINE": "1"})


class RefusedError(Exception):
    """Error with a response, as HTTP clients raise it."""

    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_request_is_retried_while_the_hub_is_busy(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(hub, "RETRY_DELAYS_SECONDS", (0, 0))
    refusals = [RefusedError(status)] * 2

    def request() -> str:
        if refusals:
            raise refusals.pop()
        return "text"

    assert hub.call_with_retries(request, "dataset x") == "text"
    refusals = [RefusedError(status)] * 3
    with pytest.raises(UserError, match=f"answers {status} to each attempt"):
        hub.call_with_retries(request, "dataset x")


def test_refused_request_is_not_retried() -> None:
    refusals = [RefusedError(400)]

    def request() -> str:
        raise refusals.pop()

    with pytest.raises(UserError, match="dataset x: cannot be loaded"):
        hub.call_with_retries(request, "dataset x")


def test_dataset_is_fetched_from_a_hub_that_is_often_busy(tmp_path: Path) -> None:
    with serve_hub("--fail", "0.3") as endpoint:
        env = {**os.environ, "HF_HUB_OFFLINE": "0", **hub_variables(endpoint, tmp_path)}
        sizes = json.loads(run_program("prepare_corpora.py", "wikitext2", env=env))
    assert sizes["wikitext2"]["validation_words"] == 217_646
