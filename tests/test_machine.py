"""What a machine allows: cores, and obstacles to Ray's start, each made to happen in a process of its own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raylm import machine
from raylm.errors import UserError

OBSTACLE = "from raylm.machine import find_ray_obstacle; print(find_ray_obstacle())"


def run_python(code: str, *prefix: str, **variables: str) -> str:
    """Return what a program prints, under other commands and variables."""
    env = {**os.environ, **variables}
    return subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout


def test_nothing_stands_in_rays_way_here() -> None:
    assert machine.find_ray_obstacle() is None


def test_cores_are_those_that_are_allowed() -> None:
    code = "import os; from raylm.machine import allowed_cpus; os.sched_setaffinity(0, {0}); print(allowed_cpus())"
    assert run_python(code) == "1\n"
    assert 1 <= machine.allowed_cpus() <= (os.cpu_count() or 1)


def test_cores_of_a_slurm_job_are_those_of_its_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert machine.allowed_cpus() == 64, "a leftover of another shell"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert machine.allowed_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert machine.allowed_cpus() == 6, "a batch script has all cores of its job"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert machine.allowed_cpus() == 2


@pytest.mark.parametrize(
    ("content", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("damaged", 64)]
)
def test_cores_of_a_container_are_those_of_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, cores: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "cpu.max").write_text(content)
    assert machine.allowed_cpus() == cores


def test_folder_that_is_too_long_for_a_socket_is_named() -> None:
    folder = tempfile.mkdtemp(prefix="a-folder-of-a-batch-system-with-a-long-name-", dir="/tmp")
    try:
        message = run_python(OBSTACLE, TMPDIR=folder, RAY_TMPDIR="")
        assert f"its socket's path in {folder} would have" in message and "107 are the most" in message
        assert "set RAY_TMPDIR to a shorter folder" in message
        assert run_python(OBSTACLE, TMPDIR=folder, RAY_TMPDIR="/tmp") == "None\n"
    finally:
        shutil.rmtree(folder)


def test_on_a_mac_whose_tmpdir_is_too_long_for_a_socket_ray_uses_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert machine.ray_temporary_folder() == os.environ["TMPDIR"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.ray_temporary_folder() == "/tmp"
    assert machine.find_ray_obstacle() is None


def test_folder_that_cannot_be_written_is_named() -> None:
    assert "its folder /proc/x cannot be written" in run_python(OBSTACLE, RAY_TMPDIR="/proc/x")


def test_machine_without_a_loopback_interface_is_told() -> None:
    prefix = ["unshare", "-rn"] if shutil.which("unshare") else []
    if not prefix or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare and network namespaces")
    message = run_python(OBSTACLE, *prefix)
    assert "cannot connect to itself at 127.0.0.1" in message and "ip link set lo up" in message


def test_low_limits_are_described() -> None:
    code = (
        "import resource; from raylm.machine import describe_limits; "
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)); print(describe_limits()); "  # Ray raises it
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); print(describe_limits())"
    )
    raised, low = run_python(code).splitlines()
    assert "`ulimit -n`" not in raised and "`ulimit -n` is 200" in low
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 200


def test_low_limit_of_virtual_memory_is_told() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9, 12 * 10**9)); " + OBSTACLE
    message = run_python(code)
    assert "the limit of virtual memory is 11.2 GiB and Ray needs 15 GiB" in message and "ulimit -v" in message


def test_trial_that_requests_more_cores_than_are_allowed_is_refused() -> None:
    with pytest.raises(UserError, match=r"a trial requests 5000 CPUs and this command may use \d+ cores? .*fewer"):
        machine.prepare_ray_start(5000)


def test_low_limit_of_the_size_of_files_is_told() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); " + OBSTACLE
    message = run_python(code.format(10**8))
    assert "the limit on the size of a file is 0.1 GiB and Ray's object store is a file of" in message
    assert "raise it with `ulimit -f unlimited`" in message
    assert run_python(code.format(10**13)) == "None\n"


def test_home_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(UserError, match=r"~/.ray cannot be written \(HOME is /proc\).*set HOME"):
        machine.create_ray_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    machine.create_ray_token()


def test_token_file_that_a_variable_names_must_have_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", " ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(
        UserError, match=r"RAY_AUTH_TOKEN_PATH is .*/token: No such file.*expected a file with the token"
    ):
        machine.create_ray_token()
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        machine.create_ray_token()
    (tmp_path / "token").write_text("secret\n")
    machine.create_ray_token()
    assert machine.find_ray_token() == str(tmp_path / "token")


def test_token_is_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    machine.create_ray_token()
    file = tmp_path / ".ray" / "auth_token"
    assert (file.stat().st_mode & 0o777, len(file.read_text())) == (0o600, 64)
    file.chmod(0o644)
    machine.create_ray_token()
    assert file.stat().st_mode & 0o777 == 0o600
