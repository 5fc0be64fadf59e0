"""Whole sweeps that are killed, interrupted, short of memory, disk, time and nodes: each ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import build_sweep_command
from oracle import find_trial_processes, hash_best_weights, read_stable_table, wait_for
from transformers import GPT2Config

from raylm.data.preparation import prepare
from raylm.results import manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

PATIENCE = 900.0
"""Seconds for what comes in the end; a busy machine takes long for all of it."""
MIB = 2**20
EVALUATED = "  epoch "
"""Stands in each line of output about an evaluation."""
STARTED = "  started"
"""And in each about a trial that begins, for the first time or again."""
SLOW_TO_END = ("ray::DashboardA", "ray::RuntimeEnv")
"""Ray's agents look for a Ray that was killed for a minute before they end; they hold nothing."""
DISK_MIB = 60
LEFT_ON_DISK_MIB = 1
"""A checkpoint is larger."""
MEMORY_MIB = 4500
TOO_LARGE = {"n_embd": 2560, "n_layer": 6, "n_head": 4, "n_positions": 64}
"""A model that alone takes more, with its gradients."""
TRAINED_SECONDS = 2.0
"""A trial's time on its CPU after which it is in the middle of its epoch: past its first steps, far from its end."""

GRID = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="chaos", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": 1, "dropout": 0.1,
    "learning_rate": tune.grid_search([1e-3, 1e30, 2e-3, 3e-3]), "max_train_tokens": 10_000,
}}, resources=Resources(cpus=1){more})
"""
"""Epochs of some seconds without an evaluation on the way; the second row diverges at once."""

SEARCH = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="chaos", search="optuna", num_samples=8, scheduler="asha", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": tune.choice([2, 4]), "dropout": 0.1,
    "learning_rate": tune.loguniform(1e-5, 1e-2), "max_train_tokens": 3_000, "evals_per_epoch": 9,
}}, resources=Resources(cpus=1))
"""

MANY = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="chaos", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": tune.grid_search([2, 4]),
    "learning_rate": tune.grid_search([n * 1e-3 for n in range(1, 11)]), "dropout": 0.1,
    "max_train_tokens": 6_000, "evals_per_epoch": 20,
}}, resources=Resources(cpus=1))
"""

TOO_LARGE_AMONG_OTHERS = """
from raylm import Resources, Sweep
common = {{"dataset": {text!r}, "context_length": 16, "batch_size": 1, "dropout": 0.1, "max_train_tokens": 10_000}}
small = [{{**common, "model": "gpt2-nano", "learning_rate": rate}} for rate in (1e-3, 2e-3, 3e-3)]
large = {{**common, "model": {model!r}, "pretrained": False}}
sweep = Sweep(name="chaos", space=[small[0], large, *small[1:]], resources=Resources(cpus=1))
"""

Start = Callable[..., "Command"]
Undisturbed = tuple[Path, Path]
"""A sweep file, and the results folder of a run that nothing disturbed."""


# ---- commands -----------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """`python -m raylm.sweep` in a process group of its own, as a shell starts it, its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path
    family: list[psutil.Process] = field(default_factory=list)
    """Its processes when they were last asked for."""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.output.read_text()

    def ends(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(timeout=seconds)

    def wait_for(self, condition: Callable[[], object], between: float = 0.02) -> None:
        """Waits until something is so while it runs."""
        wait_for(lambda: condition() or not self.running, PATIENCE, between)
        assert condition() or self.running, self.said()

    def count(self, what: str) -> int:
        return self.said().count(what)

    def wait_for_lines(self, what: str, number: int = 1) -> None:
        """Waits until so many lines of output have this."""
        self.wait_for(lambda: self.count(what) >= number)

    def look(self) -> None:
        """Takes down which processes are its own."""
        driver = psutil.Process(self.process.pid)
        self.family = [driver, *driver.children(recursive=True)]

    def left(self) -> list[psutil.Process]:
        """Which of those that were taken down have not ended. One that nobody has waited for has."""
        return [process for process in self.family if _alive(process)]

    def interrupt(self) -> None:
        """Ctrl-C: every process in the terminal's foreground gets a SIGINT."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """`kill -9` of the command; Ray's processes must end by themselves."""
        self.look()
        self.family = [process for process in self.family if not _is(process, *SLOW_TO_END)]
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not self.left(), 60)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is(process: psutil.Process, *names: str) -> bool:
    """Whether its name begins with one of these."""
    try:
        return str(process.name()).startswith(names)
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> bool:
    """Whether it was there to be killed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a sweep in `tmp_path / "runs"`; whatever still runs in the end is killed."""
    commands: list[Command] = []

    def started(
        file: Path, *options: str, storage: Path | None = None, env: dict[str, str] | None = None, group: str = ""
    ) -> Command:
        arguments = build_sweep_command(file, storage or tmp_path / "runs", *options)
        if group:  # of processes whose memory is limited together
            arguments = ["sh", "-c", f"echo $$ > {shlex.quote(group)} && exec {shlex.join(arguments)}"]
        output = tmp_path / f"output-{len(commands) + 1}"
        with output.open("wb") as file_:
            commands.append(
                Command(
                    subprocess.Popen(
                        arguments,
                        stdout=file_,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env={**os.environ, **(env or {})},
                    ),
                    output,
                )
            )
        return commands[-1]

    yield started
    for command in commands:
        if command.running:
            command.look()
            for process in reversed(command.family):
                _kill(process)
            command.process.wait()
        print(f"---- {command.output.name}, exit code {command.process.returncode}\n{command.said()}")


def wait_until_training(command: Command) -> None:
    """Waits until a trial is in the middle of its epoch, by the time that it had on its CPU."""
    begun: dict[int, float] = {}

    def trained() -> bool:
        for process in find_trial_processes(command.process.pid) if command.running else []:
            try:
                seconds = process.cpu_times().user
            except psutil.Error:
                continue
            if seconds - begun.setdefault(process.pid, seconds) > TRAINED_SECONDS:
                return True
        return False

    command.wait_for_lines(STARTED)
    command.wait_for(trained, between=0.2)


def assert_same(folder: Path, undisturbed: Path) -> None:
    """The same rows, the same weights, and of a search the same trials in the same order."""
    assert read_stable_table(folder) == read_stable_table(undisturbed)
    assert hash_best_weights(folder) == hash_best_weights(undisturbed)
    assert trials_and_lag(folder) == trials_and_lag(undisturbed)


def trials_and_lag(folder: Path) -> tuple[list[str], int | None]:
    record: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return [trial["id"] for trial in record["trials"]], record["lag"]


# ---- what they are compared with ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with enough text for an epoch of some seconds."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics))[:120_000])
    shutil.copy(small_text / "validation.txt", folder)
    return str(folder)


def _undisturbed(file: Path, text: str, *options: str) -> Undisturbed:
    file.write_text(text)
    began = time.monotonic()
    arguments = build_sweep_command(file, file.parent / "runs", *options)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"undisturbed: {time.monotonic() - began:.0f} s")
    return file, file.parent / "runs" / "chaos"


@pytest.fixture(scope="module")
def grid(text: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    undisturbed = _undisturbed(tmp_path_factory.mktemp("grid") / "grid.py", GRID.format(text=text, more=""))
    assert [row["status"] for row in read_stable_table(undisturbed[1]).values()] == ["done", "diverged", "done", "done"]
    return undisturbed


@pytest.fixture(scope="module")
def search(text: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    file = tmp_path_factory.mktemp("search") / "search.py"
    undisturbed = _undisturbed(file, SEARCH.format(text=text), "--max-concurrent", "2")
    assert {row["status"] for row in read_stable_table(undisturbed[1]).values()} == {"done", "stopped"}
    return undisturbed


@pytest.fixture(scope="module")
def many(text: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return _undisturbed(tmp_path_factory.mktemp("many") / "many.py", MANY.format(text=text))


# ---- kill -9 ------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.parametrize("kills", [2, 10])
def test_a_search_whose_command_is_killed_ends_as_an_undisturbed_one(
    search: Undisturbed, start: Start, tmp_path: Path, kills: int
) -> None:
    moments = random.Random(kills)
    for _ in range(kills):
        command = start(search[0], "--max-concurrent", "2")
        command.wait_for_lines(EVALUATED, moments.randint(1, 40 // kills))
        time.sleep(moments.uniform(0, 0.3))
        assert command.running, "it was killed too late"
        command.kill()
    assert start(search[0], "--max-concurrent", "2").ends() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["grid", "search"])
def test_a_command_killed_at_each_step_of_a_launch_ends_as_an_undisturbed_one(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path, kind: str
) -> None:
    file, undisturbed = request.getfixturevalue(kind)
    options = ("--max-concurrent", "2") if kind == "search" else ()
    folder = tmp_path / "runs" / "chaos"
    trial = "launch-*/*"
    checkpoint = f"{trial}/checkpoint_*"
    before_checkpoints = (".running", "sweep.json", "launch-*", f"{trial}/status.json")
    for step in (*before_checkpoints, checkpoint, f"{checkpoint}/{manifest.MANIFEST_FILE}"):
        command, there = start(file, *options), set(folder.glob(step))
        if "checkpoint" in step:  # as if the machine lost its power: trials end at this moment too
            wait_until_training(command)
            command.look()
        command.wait_for(partial(_more_than, there, folder, step), between=0.002)
        assert command.running, "it was killed too late"
        for process in command.family:
            _kill(process)
        command.kill() if command.running else command.process.wait()
    assert start(file, *options).ends() == 0
    assert_same(folder, undisturbed)


def _more_than(there: set[Path], folder: Path, pattern: str) -> bool:
    return not there.issuperset(folder.glob(pattern))


@pytest.mark.chaos
def test_the_loss_of_the_process_between_trials_and_command_is_not_seen_in_the_results(
    search: Undisturbed, start: Start, tmp_path: Path
) -> None:
    command = start(search[0], "--max-concurrent", "2")
    command.wait_for_lines(EVALUATED, 5)
    command.look()
    (board,) = [process for process in command.family if _is(process, "ray::Board")]
    assert _kill(board)
    assert command.ends() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


@pytest.mark.chaos
def test_a_sweep_whose_whole_ray_dies_goes_on_with_another(search: Undisturbed, start: Start, tmp_path: Path) -> None:
    command = start(search[0], "--max-concurrent", "2")
    command.wait_for_lines(EVALUATED, 5)
    command.look()
    for process in command.family[1:]:
        _kill(process)
    assert command.ends() == 1
    assert start(search[0], "--max-concurrent", "2").ends() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


@pytest.mark.chaos
def test_fifty_killed_trial_processes_are_not_seen_in_the_results(
    many: Undisturbed, start: Start, tmp_path: Path
) -> None:
    moments, kills, began, commands = random.Random(0), 0, time.monotonic(), 1
    command = start(many[0])
    while kills < 50:
        command.wait_for_lines(EVALUATED, command.count(EVALUATED) + moments.randint(1, 3))
        time.sleep(moments.uniform(0, 0.5))
        if not command.running:
            assert command.ends() != 0, f"it was done after {kills} kills"
            command, commands = start(many[0]), commands + 1
        elif (found := find_trial_processes(command.process.pid)) and _kill(moments.choice(found)):
            kills += 1
    while command.ends() != 0:
        assert commands < 10, command.said()
        command, commands = start(many[0]), commands + 1
    folder = tmp_path / "runs" / "chaos"
    assert_same(folder, many[1])
    print(
        f"{kills} kills, {len(read_stable_table(folder))} trials, {commands} launches, {time.monotonic() - began:.0f} s"
    )


# ---- Ctrl-C and the time budget -----------------------------------------------------------------------------------


def test_ctrl_c_within_an_epoch_saves_the_trials_and_leaves_no_process(
    grid: Undisturbed, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "chaos"
    command = start(grid[0])
    wait_until_training(command)
    command.look()
    command.interrupt()
    assert command.ends(30) == 130
    wait_for(lambda: not command.left(), 15)

    assert "val loss" in command.said()
    assert "run the same command to resume" in command.said()
    saved = [content for path in folder.glob("launch-*/*/checkpoint_*") if (content := manifest.verify(path))]
    steps = [(content.progress.step, content.progress.total_steps) for content in saved]
    assert any(0 < step < total for step, total in steps), steps
    assert not any(content.progress.evaluations for content in saved)

    assert start(grid[0]).ends() == 0
    assert_same(folder, grid[1])


def test_ctrl_c_twice_ends_at_once_and_leaves_no_process(grid: Undisturbed, start: Start) -> None:
    command = start(grid[0])
    wait_until_training(command)
    command.look()
    command.interrupt()
    command.wait_for(lambda: "Ctrl-C leaves at once" in command.said(), between=0.005)
    command.interrupt()
    assert command.ends(3) == 130
    wait_for(lambda: not command.left(), 15)


@pytest.mark.chaos
def test_a_sweep_whose_time_budget_runs_out_goes_on_without_it(
    grid: Undisturbed, start: Start, text: str, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "chaos"
    hurried = tmp_path / "hurried.py"
    hurried.write_text(GRID.format(text=text, more=", time_budget_hours=8 / 3600"))
    command = start(hurried)
    assert command.ends() == 0, "the budget is no failure, whatever is done by then"
    assert "the time budget is used up" in command.said()
    statuses = [row["status"] for row in read_stable_table(folder).values()]
    assert set(statuses) & {"interrupted", "pending"}, statuses
    assert set(statuses) <= {"done", "diverged", "interrupted", "pending"}

    assert start(grid[0]).ends() == 0
    assert_same(folder, grid[1])


# ---- memory and disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A group of processes that may take so much memory together and no more."""
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


@pytest.mark.chaos
def test_a_trial_too_large_for_the_memory_fails_alone(
    grid: Undisturbed, start: Start, text: str, tmp_path: Path, memory_group: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    corpus = prepare(text, None, "gpt2-nano")
    for name, content in corpus.tokenizer_files.items():
        (model / name).write_bytes(content)
    config = GPT2Config(vocab_size=corpus.vocab_size, bos_token_id=0, eos_token_id=0, **TOO_LARGE)
    config.save_pretrained(model)
    file = tmp_path / "memory.py"
    file.write_text(TOO_LARGE_AMONG_OTHERS.format(text=text, model=str(model)))

    command = start(file, group=str(memory_group / "cgroup.procs"))
    assert command.ends() == 1
    rows = read_stable_table(tmp_path / "runs" / "chaos")
    (large,) = [run for run in rows if "nano" not in run]
    assert rows[large]["status"] == "failed"
    assert rows[large]["reason"].startswith("out of memory")
    expected = {run: row for run, row in read_stable_table(grid[1]).items() if row["status"] == "done"}
    assert {run: row for run, row in rows.items() if run != large} == expected


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many MiB; its path is short, as Ray's sockets may be in there."""
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
    """A file that takes what is free on a disk but for so many MiB."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left * MIB)
    return filler


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["storage", "TMPDIR"])
def test_a_sweep_whose_disk_fills_up_goes_on_when_there_is_room(
    grid: Undisturbed, start: Start, tmp_path: Path, small_disk: Callable[[int], Path], place: str
) -> None:
    disk = small_disk(DISK_MIB)
    storage = disk if place == "storage" else tmp_path / "runs"
    env = {} if place == "storage" else {"TMPDIR": str(disk)}
    command = start(grid[0], storage=storage, env=env)
    command.wait_for_lines(STARTED)
    filler = fill(disk)
    assert command.ends() == 1
    assert "the disk is full" in command.said()

    filler.unlink()
    assert start(grid[0], storage=storage, env=env).ends() == 0
    assert_same(storage / "chaos", grid[1])


def test_a_sweep_whose_checkpoints_do_not_fit_is_refused_before_ray_starts(
    grid: Undisturbed, start: Start, small_disk: Callable[[int], Path]
) -> None:
    command = start(grid[0], storage=small_disk(1))
    assert command.ends() == 2
    assert "free some space" in command.said()
    assert "starting Ray" not in command.said()


def test_a_cache_that_is_full_is_named_and_holds_no_half_of_a_corpus(
    start: Start, text: str, tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, disk = tmp_path / "grid.py", small_disk(1)
    file.write_text(GRID.format(text=text, more=""))
    filler = fill(disk, left=0)
    command = start(file, env={"RAYLM_CACHE": str(disk)})
    assert command.ends() == 2
    assert f"the disk of the cache {disk} is full" in command.said()
    assert "starting Ray" not in command.said()

    expected = prepare(text, None, "gpt2-nano")
    filler.unlink()
    monkeypatch.setenv("RAYLM_CACHE", str(disk))
    made = prepare(text, None, "gpt2-nano")
    assert made.fingerprint == expected.fingerprint
    assert np.array_equal(made.train.tokens, expected.train.tokens)


# ---- nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_a_lost_node_is_not_seen_in_the_results(
    search: Undisturbed, start: Start, tmp_path: Path, ray_tmpdir: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = {_raylet(node): node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
        command = start(search[0], "--max-concurrent", "2", "--address", cluster.address)
        command.wait_for_lines(EVALUATED, 5)
        helpers = [nodes[pid] for pid in _parents("ray::Board") if pid in nodes]
        cluster.remove_node([*helpers, *nodes.values()][0], allow_graceful=False)  # the one whose loss hurts most
        cluster.add_node(num_cpus=1)
        assert command.ends() == 0
        assert_same(tmp_path / "runs" / "chaos", search[1])
    finally:
        cluster.shutdown()


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _parents(name: str) -> list[int]:
    """Of the processes of a name."""
    return [process.ppid() for process in psutil.process_iter() if _is(process, name)]
