"""A head of `ray start` typed by hand, with a token: joined, refused in one line, and given a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from oracle import find_free_port, is_port_open, wait_for

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
SWEEP = """from raylm import Sweep
sweep = Sweep(name="quick", space={"dataset": "pydocs", "model": "gpt2-nano", "context_length": 32, "batch_size": 4,
    "epochs": 1, "max_train_tokens": 500})
"""
OTHER_VERSIONS = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
client.internal_kv_put(b"CLUSTER_METADATA", sys.argv[2].encode(), True, b"cluster")
"""

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


@dataclass(frozen=True)
class Head:
    """A running head."""

    address: str
    dashboard: str
    folder: Path

    def run(
        self, *arguments: str, home: str = "home", prefix: Sequence[str] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run raylm as from a new shell, under another command: nothing of Ray is set in its environment."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"HOME": str(self.folder / home), "RAY_TMPDIR": str(self.folder / "other"), **variables}
        command = [*prefix, str(BIN / "raylm"), "run", str(self.folder / "quick.py"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="raylm", dir="/tmp"))  # short enough for Ray's sockets
    (folder / "home" / ".ray").mkdir(parents=True)
    (folder / "home" / ".ray" / "auth_token").write_text(TOKEN)
    (folder / "stranger").mkdir()
    (folder / "quick.py").write_text(SWEEP)
    port, dashboard = find_free_port(), find_free_port()
    env = {**os.environ, "HOME": str(folder / "home"), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token"}
    env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    options = [f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=1", "--object-store-memory=100000000"]
    options += [f"--dashboard-agent-listen-port={find_free_port()}"]  # of another Ray of this machine by default
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", *options], env=env, stdout=log, stderr=log
        ) as ray,
    ):
        try:
            wait_for(lambda: is_port_open("127.0.0.1", dashboard), 120, 0.5)
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder)
        finally:
            ray.terminate()
    shutil.rmtree(folder, ignore_errors=True)


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Expect one line of raylm's as the last, no line of Ray's, and exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("raylm: "))
    assert message in line
    assert "gcs_client" not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_token_that_is_there_is_used_and_others_are_refused_in_one_line(head: Head) -> None:
    storage = ("--storage", str(head.folder / "runs"))
    done = head.run(*storage, "--address", head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 row: 1 done" in done.stdout + done.stderr
    assert "gcs_client" not in done.stderr and "RAY_AUTH" not in done.stderr

    elsewhere = ("--storage", str(head.folder / "refused"), "--address")
    for address in (head.address, head.dashboard):
        assert_refused(head.run(*elsewhere, address, home="stranger"), "requires a token, and this machine has none")
        wrong = head.run(*elsewhere, address, home="stranger", RAY_AUTH_TOKEN="f" * 64)
        assert_refused(wrong, "refuses the token of this machine, RAY_AUTH_TOKEN")
    assert not (head.folder / "stranger" / ".ray").exists(), "no token is created for a cluster of others"


def test_job_is_submitted_with_the_token_and_without_lines_of_ray(head: Head) -> None:
    done = head.run("--storage", str(head.folder / "of-job"), "--address", head.dashboard)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 row: 1 done" in done.stdout
    assert "INFO dashboard_sdk" not in done.stderr and "INFO sdk" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_machine_that_is_no_node_is_refused(head: Head) -> None:
    """Hide the files of the head's Ray, as on another machine: Ray itself would abort the process."""
    hidden = f'mount -t tmpfs none {head.folder}/ray && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", hidden, "sh")
    done = head.run("--storage", str(head.folder / "refused"), "--address", head.address, prefix=prefix)
    assert_refused(done, f"this machine is no node of the cluster at {head.address} (your Ray runs on ")


def test_head_of_other_versions_is_refused(head: Head) -> None:
    versions = json.dumps({"ray_version": "2.9.0", "python_version": "3.10.1"})
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    subprocess.run([sys.executable, "-c", OTHER_VERSIONS, head.address, versions], check=True, env=env, timeout=60)
    done = head.run("--storage", str(head.folder / "refused"), "--address", head.address)
    assert_refused(done, "runs Ray 2.9.0 on Python 3.10.1, this command Ray ")
