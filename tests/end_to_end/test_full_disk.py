"""Sweeps without enough memory or disk space: a trial fails alone, and a sweep resumes when there is space."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import STARTED, Start, Uninterrupted, assert_same
from oracle import read_stable_table, wait_for
from ray_cluster import PROGRAMS
from transformers import GPT2Config

from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare

pytest_plugins = ["commands"]
pytestmark = pytest.mark.timeout(3000)

MIB = 2**20
DISK_MIB = 60
LEFT_ON_DISK_MIB = 1
"""Free space, smaller than a checkpoint."""
MEMORY_MIB = 4500
TOO_LARGE = {"n_embd": 2560, "n_layer": 6, "n_head": 4, "n_positions": 64}
"""Model that needs more than that with its gradients."""

# ---- memory and disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Control group with a memory limit; yields its folder."""
    group = Path("/sys/fs/cgroup/memory") / f"raylm-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_MIB * MIB))
    except OSError as error:
        pytest.skip(f"memory cannot be limited here: {error}")
    yield group

    def removed() -> bool:
        try:
            group.rmdir()
        except OSError:  # its last processes are ending
            return False
        return True

    wait_for(removed, 60)


@pytest.mark.ray
@pytest.mark.chaos
def test_trial_too_large_for_the_memory_fails_alone(
    grid: Uninterrupted, start: Start, long_text: str, tmp_path: Path, memory_group: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    corpus = prepare(DatasetSpec(long_text), None, "gpt2-nano")
    for name, content in corpus.tokenizer_files.items():
        (model / name).write_bytes(content)
    config = GPT2Config(vocab_size=corpus.vocab_size, bos_token_id=0, eos_token_id=0, **TOO_LARGE)
    config.save_pretrained(model)
    command = start(
        PROGRAMS / "one_too_large.py",
        env={"RAYLM_TESTS_MODEL": str(model)},
        group=str(memory_group / "cgroup.procs"),
    )
    assert command.wait() == 1
    rows = read_stable_table(tmp_path / "runs" / "chaos")
    (large,) = [run for run in rows if "nano" not in run]
    assert rows[large]["status"] == "failed"
    assert rows[large]["reason"].startswith("out of memory")
    expected = {run: row for run, row in read_stable_table(grid[1]).items() if row["status"] == "done"}
    assert {run: row for run, row in rows.items() if run != large} == expected


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Function that mounts a disk of a size in MiB, at a short path for Ray's sockets."""
    mounted: list[Path] = []

    def mount(mebibytes: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="raylm", dir="/tmp"))
        options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        try:
            done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"nothing can be mounted here: {error}")
        if done.returncode:
            folder.rmdir()
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path, left: int = LEFT_ON_DISK_MIB) -> Path:
    """Fill a disk up to `left` MiB with a file; return the file."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left * MIB)
    return filler


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("place", ["storage", "TMPDIR"])
def test_sweep_resumes_after_a_full_disk(
    grid: Uninterrupted, start: Start, tmp_path: Path, small_disk: Callable[[int], Path], place: str
) -> None:
    disk = small_disk(DISK_MIB)
    storage = disk if place == "storage" else tmp_path / "runs"
    env = {} if place == "storage" else {"TMPDIR": str(disk)}
    command = start(grid[0], storage=storage, env=env)
    command.wait_for_lines(STARTED)
    filler = fill(disk)
    assert command.wait() == 1
    assert "the disk is full" in command.read_output()

    filler.unlink()
    assert start(grid[0], storage=storage, env=env).wait() == 0
    assert_same(storage / "chaos", grid[1])


def test_sweep_whose_checkpoints_do_not_fit_is_refused_before_ray_starts(
    grid_file: Path, start: Start, small_disk: Callable[[int], Path]
) -> None:
    command = start(grid_file, storage=small_disk(1))
    assert command.wait() == 2
    assert "free some space" in command.read_output()
    assert "starting Ray" not in command.read_output()


def test_full_cache_is_named_and_holds_no_partial_corpus(
    grid_file: Path, start: Start, long_text: str, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(1)
    filler = fill(disk, left=0)
    command = start(grid_file, env={"RAYLM_CACHE": str(disk)})
    assert command.wait() == 2
    assert f"the disk of the cache {disk} is full" in command.read_output()
    assert "starting Ray" not in command.read_output()

    expected = prepare(DatasetSpec(long_text), None, "gpt2-nano")
    filler.unlink()
    monkeypatch.setenv("RAYLM_CACHE", str(disk))
    made = prepare(DatasetSpec(long_text), None, "gpt2-nano")
    assert made.fingerprint == expected.fingerprint
    assert np.array_equal(made.train.tokens, expected.train.tokens)
