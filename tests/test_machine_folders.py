"""Folders and limits of machines as people have them: read-only, of another user, without locks, without a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raylm import machine
from raylm.data import cache
from raylm.errors import UserError

PROGRAM = Path(__file__).parent / "programs" / "without_locks.py"
OTHER_USER = ("unshare", "--user", "--map-user=12345")
"""Prefix of a command that runs as a user without an entry in /etc/passwd, who has no rights of root's."""

BUILD = """
import sys
import tempfile
from pathlib import Path
from raylm.data import cache
from raylm.errors import UserError
try:
    print(cache.get_or_build("texts", "key", lambda folder: (folder / "file").write_text(sys.argv[1]) and None))
except UserError as error:
    print(error)
"""
LOCK = """
import sys, time
from pathlib import Path
from raylm.errors import UserError
from raylm.results.lock import lock
from raylm.results.storage import Folder
try:
    with lock(Folder(Path(sys.argv[1]))):
        print("locked", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error)
"""


def run_python(*arguments: str, prefix: tuple[str, ...] = (), **variables: str | None) -> str:
    """Return what a program prints; a variable that is None is unset."""
    env = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    command = [*prefix, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    if done.stdout.startswith("skip: "):
        pytest.skip(done.stdout)
    return done.stdout.strip()


@pytest.fixture
def other_user() -> tuple[str, ...]:
    """Prefix of a command of another user."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*OTHER_USER, sys.executable, "-c", ""], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs unshare and user namespaces")
    return OTHER_USER


# ---- caches -------------------------------------------------------------------------------------------------------


def test_cache_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, other_user: tuple[str, ...]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    texts.chmod(0o555)
    message = run_python("-c", BUILD, "text", prefix=other_user, RAYLM_CACHE=str(tmp_path))
    assert message.startswith(f"the cache {texts} cannot be used: Permission denied")
    assert message.endswith("choose another folder with the environment variable RAYLM_CACHE")
    assert "\n" not in message


def test_entry_of_a_cache_that_cannot_be_written_is_used(tmp_path: Path, other_user: tuple[str, ...]) -> None:
    entry = tmp_path / "texts" / "key"
    entry.mkdir(parents=True)
    entry.parent.chmod(0o555)
    assert run_python("-c", BUILD, "text", prefix=other_user, RAYLM_CACHE=str(tmp_path)) == str(entry)


def test_cache_on_a_file_system_without_locks_is_built(tmp_path: Path) -> None:
    entry = tmp_path / "texts" / "key"
    for text in ("first", "second"):
        assert run_python(str(PROGRAM), BUILD, text, RAYLM_CACHE=str(tmp_path)) == str(entry)
    assert (entry / "file").read_text() == "first"


def test_user_without_a_home_is_told_what_to_set(other_user: tuple[str, ...]) -> None:
    unset = dict.fromkeys(("HOME", "RAYLM_CACHE", "XDG_CACHE_HOME"))
    message = run_python("-c", BUILD, "text", prefix=other_user, **unset)
    assert message.startswith("this user has no home: HOME is not set")
    assert "set HOME to a folder that can be written, or RAYLM_CACHE" in message


def test_sweep_file_of_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, other_user: tuple[str, ...]) -> None:
    (tmp_path / "sweep.py").write_text("from ray import tune\n")
    (tmp_path / "sweep.py").chmod(0o644)
    tmp_path.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from raylm.config.sweep_file import load_sweep\n"
        "from raylm.errors import UserError\n"
        "try: load_sweep(Path(sys.argv[1]))\n"
        "except UserError as error: print(error)"
    )
    message = run_python("-c", code, str(tmp_path / "sweep.py"), prefix=other_user, HOME=None)
    assert message.startswith(f"{tmp_path}/sweep.py:1: this user has no home: HOME is not set")
    assert message.endswith("set HOME to a folder that can be written")


def test_hub_cache_that_cannot_be_written_is_named() -> None:
    code = (
        "from raylm.data.hub_errors import to_user_error; from huggingface_hub import constants; import os\n"
        "try: os.makedirs(constants.HF_HUB_CACHE)\n"
        "except OSError as error: print(to_user_error(error, 'model gpt2'))"
    )
    message = run_python("-c", code, HF_HOME="/proc/cache", HF_HUB_CACHE=None, HF_DATASETS_CACHE=None)
    assert message.startswith("model gpt2: the cache cannot be written: ")
    assert message.endswith("set HF_HOME to a folder that can be written")


def test_hub_cache_that_other_programs_have_filled_is_used_without_the_hub(tmp_path: Path) -> None:
    refs = tmp_path / "hub" / "models--someone--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0" * 40)
    code = "from raylm.data.hub import resolve_commit; print(resolve_commit('someone/model', 'model'))"
    unset = dict.fromkeys(("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"))
    places = {"HF_HOME": str(tmp_path), "RAYLM_CACHE": str(tmp_path / "raylm"), "HF_HUB_OFFLINE": "1"}
    assert run_python("-c", code, prefix=(), **unset, **places) == "0" * 40


def test_relative_folders_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("HF_HOME", "hf"),
        ("TMPDIR", "/tmp"),
        ("RAYLM_CACHE", "caches/raylm"),
        ("RAY_TMPDIR", "~/ray"),
    ):
        monkeypatch.setenv(name, value)
    assert cache.root_dir() == tmp_path / "caches" / "raylm"
    machine.make_folders_absolute()
    names = ("HF_HOME", "TMPDIR", "RAYLM_CACHE", "RAY_TMPDIR")
    assert [os.environ[name] for name in names] == [f"{tmp_path}/hf", "/tmp", f"{tmp_path}/caches/raylm", "~/ray"]


def test_cache_in_the_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", "~no-such-user/raylm")
    with pytest.raises(UserError, match="RAYLM_CACHE is ~no-such-user/raylm: there is no user 'no-such-user'"):
        cache.root_dir()


def test_plan_and_doctor_need_no_cache(tmp_path: Path, other_user: tuple[str, ...]) -> None:
    """Look into the home of another user, as where a container of another user keeps HOME=/root."""
    (tmp_path / "home").mkdir(mode=0o000)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    (tmp_path / "ray" / "ray_current_cluster").chmod(0o000)
    code = (
        "from raylm.data import cache; from raylm.cli.doctor import run_checks\n"
        "print(cache.find_files('corpora', '*'), cache.find_entry('corpora', 'key'))\n"
        "for result in run_checks(None, None): print(f'{result.check}: {result.status}: {result.advice}')"
    )
    unset = dict.fromkeys(("RAYLM_CACHE", "XDG_CACHE_HOME", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    home = str(tmp_path / "home" / "me")
    output = run_python("-c", code, prefix=other_user, HOME=home, RAY_TMPDIR=str(tmp_path), **unset)
    assert output.startswith("[] None\n")
    for line in (
        f"Ray's token: cannot be read: the token {home}/.ray/auth_token cannot be read: Permission denied; set HOME",
        f"cache: cannot be written: the cache {home}/.cache/raylm cannot be created: Permission denied",
        "temporary files: ",
        "cluster: none; a sweep starts Ray on this machine",
    ):
        assert line in output


def test_figures_in_a_home_that_cannot_be_written_are_drawn_in_silence() -> None:
    code = "from raylm.cli.common import exit_codes\nwith exit_codes():\n    import matplotlib.figure"
    env = {**os.environ, "HOME": "/proc"} | {"MPLCONFIGDIR": "/proc/matplotlib"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stderr == ""


def test_folder_of_another_users_ray_is_named(other_user: tuple[str, ...]) -> None:
    code = "from raylm.machine import find_ray_obstacle; print(find_ray_obstacle())"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short enough for Ray's sockets
        (Path(folder) / "ray").mkdir(mode=0o555)
        message = run_python("-c", code, prefix=other_user, RAY_TMPDIR=folder)
    assert message.startswith(
        f"its folder {folder}/ray cannot be written: Permission denied; set RAY_TMPDIR to another"
    )


# ---- results ------------------------------------------------------------------------------------------------------


def test_results_folder_without_locks_is_locked_by_its_heartbeat(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None and first.stdout is not None
        line = first.stdout.readline()
        if line.startswith("skip: "):
            pytest.skip(line)
        assert line == "locked\n"
        message = run_python(str(PROGRAM), LOCK, str(tmp_path))
        assert f"in use by process {first.pid} on " in message
        first.kill()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second:
        assert second.communicate("\n", timeout=60)[0] == "locked\n", "the killed process keeps nobody away"


def test_read_only_results_folder_of_another_user_is_refused(tmp_path: Path, other_user: tuple[str, ...]) -> None:
    code = (
        "import sys; from pathlib import Path; from raylm.errors import UserError\n"
        "from raylm.results.storage import Folder\n"
        "try: Folder(Path(sys.argv[1])).create()\n"
        "except UserError as error: print(error)"
    )
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "sweep"):
        message = run_python("-c", code, str(folder), prefix=other_user)
        assert (
            message == f"results cannot be written to {folder}: Permission denied; choose another place with --storage"
        )


# ---- limits -------------------------------------------------------------------------------------------------------


def test_file_limit_is_handled_like_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np; from safetensors.numpy import save_file\n"
        "from raylm.errors import describe_full_disk, is_disk_full\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for write in (Path(sys.argv[1]).write_bytes, lambda data: save_file({'a': np.zeros(5000)}, sys.argv[1])):\n"
        "    try: write(bytes(5000))\n"
        "    except Exception as error: print(is_disk_full(error), *describe_full_disk(error))"
    )
    line = "True a file would be larger than this process may write raise the limit with `ulimit -f unlimited`"
    assert run_python("-c", code, str(tmp_path / "file")) == f"{line}\n{line}"


def test_memory_limit_is_recognized(tmp_path: Path) -> None:
    code = (
        "import resource; from raylm.errors import is_out_of_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))\n"
        "try: bytearray(4 * 10**9)\n"
        "except MemoryError as error: print(is_out_of_memory(error))"
    )
    assert run_python("-c", code) == "True"
