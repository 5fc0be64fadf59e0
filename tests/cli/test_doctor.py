"""Checks of `raylm doctor`, on this machine and on each node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from s3 import serve_s3

RAYLM = str(Path(sys.executable).parent / "raylm")


def doctor(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "RAY_TMPDIR": str(home), **more}
    command = [RAYLM, "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_a_machine_without_a_cluster(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--address", "local", "--storage", str(tmp_path / "runs"), RAY_TMPDIR="/tmp")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok  here  versions: python 3.") and "torch 2." in line for line in lines)
    assert any(line.startswith("ok  here  storage: ") and "written and removed" in line for line in lines)
    assert any("none; a sweep starts Ray on this machine" in line for line in lines)
    for check in ("cores: ", "cache: written and removed", "Ray's start: temporary folder ", "limits: ", "GPUs: "):
        assert any(f"  here  {check}" in line for line in lines), check
    assert list((tmp_path / "runs").iterdir()) == []
    assert "Traceback" not in done.stderr


def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("0" * 64)
    token.chmod(0o644)
    done = doctor(tmp_path, "--address", "local")
    assert done.returncode == 1
    assert f"chmod 600 {token}" in done.stdout and "0" * 64 not in done.stdout


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "log") as s3:
        done = doctor(tmp_path, "--address", "local", "--storage", "s3://not-there/x", **s3.env)
    assert done.returncode == 2
    assert "there is no bucket not-there" in done.stderr


def test_what_is_no_place_for_results_is_no_folder(tmp_path: Path) -> None:
    for arguments, more, where in (
        (["--storage", "ftp://a/b"], {}, "storage"),
        ([], {"RAYLM_STORAGE": "ftp://a/b"}, "RAYLM_STORAGE"),
    ):
        done = doctor(tmp_path, "--address", "local", *arguments, **more)
        assert done.returncode == 2
        assert where in done.stderr and "expected the path of a folder, or s3://bucket/path" in done.stderr


def test_a_cluster_that_has_died_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    done = doctor(tmp_path)
    assert "none; a sweep starts Ray on this machine" in done.stdout


def test_obstacles_to_a_sweep_are_problems(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("")
    environment = {**os.environ, "HOME": "/proc", "RAYLM_CACHE": "/proc/cache", "RAY_TMPDIR": "/tmp/" + "long-" * 20}
    command = [RAYLM, "doctor", "--address", "local"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for problem in (
        "RAYLM_CACHE",
        "set RAY_TMPDIR to a shorter folder",
        "datasets.py stands in the way of the package",
    ):
        assert problem in done.stdout
