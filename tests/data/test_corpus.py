"""Tokenized corpora: windows, the cache shared by processes, and messages for bad text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config.dataset import DatasetSpec
from raylm.data import preparation
from raylm.data.corpus import IGNORE_INDEX, Windows
from raylm.data.preparation import load_cached_sizes, prepare
from raylm.errors import UserError

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "prepare_corpus.py"


@settings(derandomize=True, deadline=None)
@given(num_tokens=st.integers(1, 300), context_length=st.integers(2, 40), batch=st.integers(1, 9))
def test_every_token_is_predicted_exactly_once(num_tokens: int, context_length: int, batch: int) -> None:
    stream = np.arange(1, num_tokens + 1, dtype=np.uint16)  # all tokens differ; 0 is the end-of-text token
    windows = Windows(stream, context_length, start_token_id=0)
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


def test_shorter_window_is_padded_with_ignored_targets() -> None:
    windows = Windows(np.array([5, 6, 7, 8], dtype=np.uint16), 4, start_token_id=9)
    inputs_BT, targets_BT = windows.get_batch([0, 1])
    assert inputs_BT.tolist() == [[9, 5, 6, 7], [9, 8, 9, 9]]
    assert targets_BT.tolist() == [[5, 6, 7, IGNORE_INDEX], [8, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]
    assert windows.get_batch([1])[0].tolist() == [[9, 8]]


def test_embedded_corpus_needs_no_hub_and_ends_each_document() -> None:
    pydocs = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    assert pydocs.vocab_size == 4096
    assert pydocs.train.tokens.dtype == np.uint16
    assert sum(int((split.tokens == pydocs.eos_token_id).sum()) for _, split in pydocs.splits()) == len(topics)
    assert 60_000 < sum(split.num_words for _, split in pydocs.splits()) < 75_000
    assert "tokenizer.json" in pydocs.tokenizer_files


def test_corpus_is_built_once_and_then_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    assert load_cached_sizes(DatasetSpec("pydocs"), "gpt2-nano") is None
    first = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    monkeypatch.setattr(preparation, "_CorpusBuilder", None)  # fails if called again
    second = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train.tokens, second.train.tokens)
    sizes = load_cached_sizes(DatasetSpec("pydocs"), "gpt2-nano")
    assert sizes is not None
    assert sizes["train_tokens"] == len(first.train.tokens)


def test_processes_that_prepare_at_once_share_one_corpus(tmp_path: Path, small_text: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(small_text)]
    env = {**os.environ, "RAYLM_CACHE": str(tmp_path)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=env) for _ in range(6)]
    processes[0].kill()  # leaves no partial entry behind
    answers = {process.communicate()[0] for process in processes[1:]}
    assert len(answers) == 1
    assert [process.wait() for process in processes] == [-9, *[0] * 5]
    assert len(list((tmp_path / "corpora").glob("*/corpus.json"))) == 1


def test_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one line\nanother line\n" * 20)
    before = prepare(DatasetSpec(str(file)), None, "gpt2-nano").fingerprint
    file.write_text("one line\nanother word\n" * 20)
    assert prepare(DatasetSpec(str(file)), None, "gpt2-nano").fingerprint != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fine\n\xff\xfe not\n", ["UTF-8", "byte 5"]),
        (b"one line only", ["1 line;", "at least 2"]),
        (b"\n \n\n \n", ["train split has no text"]),
        (b"", ["no lines"]),
    ],
)
def test_bad_local_text_is_a_user_error(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        prepare(DatasetSpec(str(file)), None, "gpt2-nano")
    assert all(word in str(caught.value) for word in [str(file), *words])


def test_cache_that_cannot_be_created_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache .*file.cache.* cannot be created.*RAYLM_CACHE"):
        prepare(DatasetSpec("pydocs"), None, "gpt2-nano")


def test_partial_entry_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    (file,) = (tmp_path / "corpora").glob("*/corpus.json")
    folder = file.parent
    left_over = folder.with_name(f".{folder.name}-abc")
    folder.rename(left_over)
    assert load_cached_sizes(DatasetSpec("pydocs"), "gpt2-nano") is None
    prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    assert not left_over.exists()
