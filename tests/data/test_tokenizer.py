"""Tokenizers of models: those that are missing, empty or lose text, their start token; and training in bounded time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tiny_tokenizers import byte_level, save_llama, sentence_piece_bpe, word_level
from transformers import PreTrainedTokenizerFast

from raylm.config.dataset import DatasetSpec
from raylm.data import tokenizer
from raylm.data.preparation import prepare
from raylm.errors import UserError


def test_model_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path, None)
    with pytest.raises(
        UserError, match=r"model x: has no tokenizer files.*copy those of the model it was trained from"
    ):
        tokenizer.load(tmp_path, "x")


def test_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path, None)
    transformers.GPT2Tokenizer().save_pretrained(tmp_path)  # what transformers makes of a folder without files
    with pytest.raises(UserError, match=r"model x: its tokenizer (has no tokens|has no end-of-text|cannot)"):
        tokenizer.load(tmp_path, "x")


def test_sentence_piece_model_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05not a model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        tokenizer.load(tmp_path, "x")


def test_end_of_text_is_taken_from_the_models_config(tmp_path: Path) -> None:
    save_llama(tmp_path, PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer))
    assert tokenizer.load(tmp_path, "x").eos_token_id == 2


def change_tokenizer_file(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the model in a folder's tokenizer.json."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content["model"])
    file.write_text(json.dumps(content))


def test_gaps_between_ids_are_part_of_the_vocabulary(small_text: Path, tmp_path: Path) -> None:
    save_llama(tmp_path, word_level())

    def move_last_token(model: dict[str, Any]) -> None:
        model["vocab"][max(model["vocab"], key=model["vocab"].get)] = 1_000
        model["vocab"]["the"], model["vocab"]["<last>"] = 1_001, model["vocab"]["the"]

    change_tokenizer_file(tmp_path, move_last_token)
    corpus = prepare(DatasetSpec(str(small_text)), tmp_path, "x")
    assert corpus.vocab_size == 1_002
    assert (corpus.train.tokens == 1_001).sum() > 50


def test_dropout_of_a_tokenizer_changes_no_token(small_text: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "a", byte_level())
    save_llama(tmp_path / "b", byte_level())
    change_tokenizer_file(tmp_path / "b", lambda model: model.update(dropout=0.5))
    expected, found = (prepare(DatasetSpec(str(small_text)), tmp_path / name, "x") for name in "ab")
    assert np.array_equal(found.train.tokens, expected.train.tokens)


@pytest.mark.parametrize(
    ("bos", "own_start"), [("<s>", 1), ("</s>", None), (None, None)], ids=["own", "end of text", "none"]
)
def test_windows_start_with_the_tokenizers_own_start_token(
    small_text: Path, tmp_path: Path, bos: str | None, own_start: int | None
) -> None:
    save_llama(tmp_path, byte_level(bos=bos))
    corpus = prepare(DatasetSpec(str(small_text)), tmp_path, "x")
    assert (corpus.own_start_token_id, corpus.start_token_id) == (own_start, own_start or 2)
    assert corpus.eos_token_id == 2


def test_own_start_token_changes_the_fingerprint(small_text: Path, tmp_path: Path) -> None:
    prints = []
    for bos in ("<s>", None):
        made = byte_level(bos=bos)
        save_llama(tmp_path / str(bos), made)
        prints.append(prepare(DatasetSpec(str(small_text)), tmp_path / str(bos), "x").fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize(("make", "lossless"), [(byte_level, True), (sentence_piece_bpe, True), (word_level, False)])
def test_tokenizer_that_loses_text_is_recognized(
    small_text: Path, tmp_path: Path, make: type[PreTrainedTokenizerFast], lossless: bool
) -> None:
    save_llama(tmp_path, make())
    corpus = prepare(DatasetSpec(str(small_text)), tmp_path, "x")
    assert corpus.is_lossless is lossless
    assert (corpus.unknown_share > 0.2) is not lossless
    assert corpus.unknown_share == pytest.approx(float(np.mean(corpus.validation.tokens == 3)))


def test_number_of_bytes_and_words_is_that_of_the_original_text(tmp_path: Path) -> None:
    lines = [f"línea {number} — of words 中文\n" for number in range(50)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    corpus = prepare(DatasetSpec(str(tmp_path / "text.txt")), None, "gpt2-nano")
    assert (corpus.train.num_words, corpus.validation.num_words) == (45 * 6, 5 * 6)
    assert corpus.train.num_bytes == sum(len(line.encode()) for line in lines[:45])
    assert corpus.validation.num_bytes == sum(len(line.encode()) for line in lines[45:])


# ---- training -----------------------------------------------------------------------------------------------------


def test_text_of_long_words_is_limited_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "MAX_DISTINCT_CHARACTERS", 50_000)
    letters = random.Random(0)
    texts = (["".join(letters.choices("ACGT", k=10_000))] for _ in itertools.count())  # without end
    trained, is_limited = tokenizer.train(texts)
    assert is_limited
    assert 300 < len(trained) <= 4096


@pytest.mark.parametrize("text", ["a line of words \n", "a line\n\n  of words", "0123abc+/", "don't", "中文，"])
def test_tokenizer_of_a_divided_text_is_that_of_the_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"{text}{number}" for number in range(3_000))
    whole = tokenizer.serialize_files(tokenizer.train([[text]])[0])
    monkeypatch.setattr(tokenizer, "PART_CHARACTERS", 1_000)
    limiter = tokenizer._TextLimiter()
    parts = list(limiter.limit([[text[start : start + 777] for start in range(0, len(text), 777)]]))
    assert "".join(parts) == text
    assert len(parts) > 10 and max(map(len, parts)) < 2_000
    assert tokenizer.serialize_files(tokenizer.train([[text]])[0]) == whole
    assert not limiter.has_limited_words
