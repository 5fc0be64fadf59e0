"""Text: what the tokenised corpora looked like before, pieces that are as good as the whole."""

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

from raylm.data import hub, sources, tokenizer
from raylm.data.sources import detokenize_wikitext
from raylm.errors import UserError


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" = Homarus gammarus = \n", "= Homarus gammarus ="),
        (" = = = Early life = = = \n", "=== Early life ==="),
        ("", ""),
        (" up to 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) . \n", "up to 0.7 – 2.2 kg (1.5 lb)."),
        (" 20 @,@ 000 well @-@ known <unk> , he said : ", "20,000 well-known <unk>, he said:"),
        (' only becoming " lobster red " on cooking . ', 'only becoming "lobster red" on cooking.'),
        (" it 's the lobsters ' claws , didn 't we ? ", "it's the lobsters' claws, didn't we?"),
        (" ( <unk> ) [ 1 ] 5 % of $ 3 ", "(<unk>) [1] 5% of $3"),
    ],
)
def test_wikitext_is_detokenised(row: str, text: str) -> None:
    assert detokenize_wikitext(row) == text


def test_wikitext_counts_a_word_per_line() -> None:
    split = sources._build_wikitext_split(["", " = A = \n", " b , c \n"])
    assert split.num_words == 6 + 3
    assert "".join(split.pieces) == "\n= A =\nb, c\n"
    assert not split.is_documents


def test_imdb_is_shuffled_and_split_nine_to_one() -> None:
    reviews = [f"review {number}" for number in range(50)]
    train, validation = sources._build_imdb_splits(reviews)
    assert (len(train.pieces), len(validation.pieces)) == (45, 5)
    assert sorted([*train.pieces, *validation.pieces]) == sorted(reviews)
    assert list(train.pieces) != reviews[:45]
    assert sources._build_imdb_splits(reviews)[0].pieces == train.pieces


def test_pieces_give_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(topics[name] for name in sorted(topics)[:12])
    spoken = tokenizer.train([text])
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 500)
    split = sources._build_line_split(text.split("\n"), num_words=0)
    assert len(split.pieces) > 20
    pieces = [token for ids in tokenizer.encode(spoken, list(split.pieces)) for token in ids]
    assert pieces == tokenizer.encode(spoken, ["".join(split.pieces)])[0]


def test_training_a_tokenizer_is_deterministic() -> None:
    text = [topics[name] for name in sorted(topics)[:20]]
    assert tokenizer.serialize_files(tokenizer.train(text)) == tokenizer.serialize_files(tokenizer.train(text))


PREPARE = """
import json, sys
from raylm import data, models
corpora = {name: data.prepare(name, models.locate("gpt2", pretrained=False).files(), "gpt2") for name in sys.argv[1:]}
print(json.dumps({
    name: [len(one.train.tokens), one.validation.words, len(one.validation.tokens), one.vocabulary, one.end_of_text]
    for name, one in corpora.items()
}))
"""


def test_real_corpora_have_the_reference_tables_ratio(hub_env: dict[str, str]) -> None:
    command = [sys.executable, "-c", PREPARE, "wikitext2", "imdb"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=hub_env)
    sizes = json.loads(done.stdout)
    train, words, tokens, vocabulary, end_of_text = sizes["wikitext2"]
    assert words == 217_646
    assert tokens / words == pytest.approx(1.119, abs=0.003)
    assert 2_250_000 < train < 2_400_000
    assert (vocabulary, end_of_text) == (50257, 50256)
    _, words, tokens, _, _ = sizes["imdb"]
    assert 1.27 < tokens / words < 1.30  # of the stand-in's 7,500 reviews; 1.284 to 1.291 on all of them


SAY_WHY = """
import sys
from raylm import data
from raylm.errors import UserError
try:
    data.prepare(sys.argv[1], None, "gpt2-nano")
except UserError as error:
    print(error)
"""


def reason(dataset: str, environment: dict[str, str]) -> str:
    """Why a dataset cannot be had, in a line."""
    command = [sys.executable, "-c", SAY_WHY, dataset]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    return done.stdout


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nobody/nothing", ["dataset nobody/nothing", "not found"]),
        ("Salesforce/wikitext", ["dataset Salesforce/wikitext", "onfig"]),
        ("Salesforce/wikitext:wikitext-9", ["wikitext-9"]),
        ("wikitext103", ["dataset wikitext103", "no train split", "validation"]),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_line(hub_env: dict[str, str], dataset: str, words: list[str]) -> None:
    said = reason(dataset, hub_env)
    assert all(word in said for word in words), said


def test_a_truncated_file_of_the_hub_is_said_in_a_line(tmp_path: Path) -> None:
    if not HUB_DIR.exists():
        pytest.skip("the stand-in for the Hugging Face Hub (../shared/hub) is not here")
    there = tmp_path / "root" / "datasets" / "stanfordnlp" / "imdb"
    shutil.copytree(HUB_DIR / "datasets" / "stanfordnlp" / "imdb", there)
    (file,) = there.rglob("train-*.parquet")
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[: len(content) // 2])
    with serve_hub("--root", str(tmp_path / "root")) as endpoint:
        places = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm")}
        said = reason("imdb", {**os.environ, "HF_HUB_OFFLINE": "0", **places})
    assert "dataset imdb: a file of it is damaged or cut off" in said
    assert "delete it from" in said


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_hub_that_cannot_be_reached_is_said_in_a_line(tmp_path: Path, endpoint: str) -> None:
    places = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm")}
    said = reason("imdb", {**os.environ, "HF_HUB_OFFLINE": "0", **places})
    assert f"{endpoint} cannot be reached (no connection)" in said
    assert "HF_HUB_OFFLINE is set" in reason("imdb", {**os.environ, **places, "HF_HUB_OFFLINE": "1"})


class RefusedError(Exception):
    """As HTTP clients raise it."""

    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(hub, "RETRY_AFTER_SECONDS", (0, 0))
    refusals = [RefusedError(status)] * 2

    def answer() -> str:
        if refusals:
            raise refusals.pop()
        return "text"

    assert hub.call_with_retries(answer, "dataset x") == "text"
    refusals = [RefusedError(status)] * 3
    with pytest.raises(UserError, match=f"answers {status}, 3 times in a row"):
        hub.call_with_retries(answer, "dataset x")


def test_a_hub_that_refuses_for_good_is_not_asked_again() -> None:
    refusals = [RefusedError(400)]

    def answer() -> str:
        raise refusals.pop()

    with pytest.raises(UserError, match="dataset x: cannot be loaded"):
        hub.call_with_retries(answer, "dataset x")


@pytest.mark.slow
def test_a_hub_that_is_often_busy_is_asked_again(tmp_path: Path) -> None:
    with serve_hub("--fail", "0.3") as endpoint:
        places = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm")}
        command = [sys.executable, "-c", PREPARE, "wikitext2"]
        env = {**os.environ, "HF_HUB_OFFLINE": "0", **places}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["wikitext2"][1] == 217_646
