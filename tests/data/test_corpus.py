"""Corpora as tokens: every token predicted once, one cache for many processes, clear words for bad text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.data.corpus import IGNORE_INDEX, Windows, load_cached_sizes, prepare
from raylm.errors import UserError


@settings(derandomize=True, deadline=None)
@given(tokens=st.integers(1, 300), context_length=st.integers(2, 40), batch=st.integers(1, 9))
def test_every_token_is_predicted_exactly_once(tokens: int, context_length: int, batch: int) -> None:
    stream = np.arange(1, tokens + 1, dtype=np.uint16)  # each token another; 0 ends texts
    windows = Windows(stream, context_length, eos_token_id=0)
    predicted: list[int] = []
    for start in range(0, len(windows), batch):
        indices = range(start, min(start + batch, len(windows)))
        inputs_BT, targets_BT = windows.get_batch(indices)
        assert inputs_BT.shape == targets_BT.shape
        assert inputs_BT.shape[1] <= context_length
        assert (inputs_BT[:, 0] == 0).all()
        counted = targets_BT != IGNORE_INDEX
        assert counted.sum() == windows.count_tokens(indices)
        assert (inputs_BT[:, 1:][counted[:, :-1]] == targets_BT[:, :-1][counted[:, :-1]]).all()
        predicted += targets_BT[counted].tolist()
    assert predicted == stream.tolist()


def test_a_shorter_window_is_filled_up_with_what_counts_for_nothing() -> None:
    windows = Windows(np.array([5, 6, 7, 8], dtype=np.uint16), 4, eos_token_id=9)
    inputs_BT, targets_BT = windows.get_batch([0, 1])
    assert inputs_BT.tolist() == [[9, 5, 6, 7], [9, 8, 9, 9]]
    assert targets_BT.tolist() == [[5, 6, 7, IGNORE_INDEX], [8, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]
    assert windows.get_batch([1])[0].tolist() == [[9, 8]]


def test_the_embedded_corpus_needs_no_hub_and_ends_each_document() -> None:
    corpus = prepare("pydocs", None, "gpt2-nano")
    assert corpus.vocab_size == 4096
    assert corpus.train.tokens.dtype == np.uint16
    ends = sum(int((split.tokens == corpus.eos_token_id).sum()) for split in (corpus.train, corpus.validation))
    topics = len(__import__("pydoc_data.topics").topics.topics)
    assert ends == topics
    assert 60_000 < corpus.train.num_words + corpus.validation.num_words < 75_000
    assert "tokenizer.json" in corpus.tokenizer_files


def test_a_corpus_is_made_once_and_known_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    assert load_cached_sizes("pydocs", "gpt2-nano") is None
    told: list[str] = []
    first = prepare("pydocs", None, "gpt2-nano", told.append)
    second = prepare("pydocs", None, "gpt2-nano", told.append)
    assert len(told) == 1
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train.tokens, second.train.tokens)
    sizes = load_cached_sizes("pydocs", "gpt2-nano")
    assert sizes is not None
    assert sizes["train_tokens"] == len(first.train.tokens)


def test_processes_that_prepare_at_once_share_one_corpus(tmp_path: Path, small_text: Path) -> None:
    code = f"from raylm import data; print(data.prepare({str(small_text)!r}, None, 'gpt2-nano').fingerprint)"
    env = {"RAYLM_CACHE": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) for _ in range(6)]
    processes[0].kill()  # one that dies on its way leaves nothing half-made behind
    answers = {process.communicate()[0] for process in processes[1:]}
    assert len(answers) == 1
    assert [process.returncode for process in processes[1:]] == [0] * 5
    assert len(list((tmp_path / "corpora").glob("*/corpus.json"))) == 1


def test_a_changed_file_is_another_corpus(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one line\nanother line\n" * 20)
    before = prepare(str(file), None, "gpt2-nano").fingerprint
    file.write_text("one line\nanother word\n" * 20)
    assert prepare(str(file), None, "gpt2-nano").fingerprint != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fine\n\xff\xfe not\n", ["UTF-8", "byte 5"]),
        (b"one line only", ["1 lines", "at least 2"]),
        (b"\n \n\n \n", ["train split has no text"]),
        (b"", ["0 lines"]),
    ],
)
def test_bad_local_text_is_named(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        prepare(str(file), None, "gpt2-nano")
    assert all(word in str(caught.value) for word in [str(file), *words])


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache .*file.cache.* cannot be made.*RAYLM_CACHE"):
        prepare("pydocs", None, "gpt2-nano")


def test_what_a_killed_process_left_half_made_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    made = prepare("pydocs", None, "gpt2-nano")
    folder = tmp_path / "corpora" / made.fingerprint
    left_over = folder.with_name(f".{folder.name}-abc")
    folder.rename(left_over)
    assert load_cached_sizes("pydocs", "gpt2-nano") is None
    prepare("pydocs", None, "gpt2-nano")
    assert not left_over.exists()
