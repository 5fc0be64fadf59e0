"""Sweeps write no secret to a file or their output, follow no links and load no pickles of a results folder."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import build_sweep_command
from malicious_pickle import MaliciousObject
from ray_cluster import PROGRAMS
from secret_search import find_files_with_secret, list_files

SECRETS = {
    "WANDB_API_KEY": "b3f1c0ffee5ca1ab1e0ddba11deadbeefca11ab1",
    "HF_TOKEN": "hf_QmFzZTY0SXNOb3RBU2VjcmV0QXRBbGw",
    "AWS_ACCESS_KEY_ID": "AKIAQ7CANARY4XBIRD2Z",
    "AWS_SECRET_ACCESS_KEY": "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",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr7SingCanarySing3n2x8v0Q5t",
}
"""Secrets in the environment of the sweeps."""
USER_TOKEN = "5ec7e75ec7e7" * 5 + "beef"
"""Token of Ray that a user sets."""


@dataclass(frozen=True)
class SweepFolder:
    """Folder with the home, cache, results and temporary files of sweeps, and the output of the latest sweep."""

    folder: Path
    env: dict[str, str] = field(repr=False)
    output: str = ""

    @property
    def results(self) -> Path:
        """Results folder of the sweep."""
        return self.folder / "runs" / "small"

    @property
    def token_path(self) -> Path:
        """File of the token that Ray creates."""
        return self.folder / "home" / ".ray" / "auth_token"

    def run_sweep(self, dataset: Path, *seeds: int) -> SweepFolder:
        """Run a sweep of these seeds; return this folder with its output."""
        finished = subprocess.run(
            build_sweep_command(PROGRAMS / "seeds.py", self.folder / "runs"),
            capture_output=True,
            text=True,
            timeout=570,
            check=False,
            env={**self.env, "RAYLM_TESTS_TEXT": str(dataset), "RAYLM_TESTS_SEEDS": ",".join(map(str, seeds))},
        )
        output = finished.stdout + finished.stderr
        assert finished.returncode == 0, output
        return replace(self, output=output)


@pytest.fixture(scope="module")
def sweep_folder() -> Iterator[SweepFolder]:
    """Empty folder below /tmp, because paths of Ray's sockets are limited."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for subfolder in ("home", "tmp"):
            (folder / subfolder).mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_", "XDG_"))}
        wandb = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}  # with its key, but unreachable
        paths = {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "RAY_TMPDIR": str(folder / "tmp"),
            "RAYLM_CACHE": str(folder / "cache"),
        }
        yield SweepFolder(folder, {**inherited, **SECRETS, **wandb, **paths})


@pytest.fixture(scope="module")
def finished(sweep_folder: SweepFolder, small_text: Path) -> SweepFolder:
    """Folder after a sweep of one trial with secrets in its environment and a token that Ray created."""
    return sweep_folder.run_sweep(small_text, 0)


# ---- secrets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encode", [bytes, base64.b64encode, lambda content: base64.b64encode(b"xy" + content), gzip.compress]
)
def test_search_detects_a_secret_in_any_encoding(tmp_path: Path, encode: Any) -> None:
    (tmp_path / "plain").write_bytes(encode(b"key=" + USER_TOKEN.encode() + b";"))
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", encode(USER_TOKEN.encode()))
    (tmp_path / "other").write_bytes(encode(b"something else"))
    assert find_files_with_secret(tmp_path, USER_TOKEN) == [tmp_path / "archive", tmp_path / "plain"]


@pytest.mark.ray
@pytest.mark.parametrize("secret", SECRETS)
def test_no_file_and_no_output_of_a_sweep_contains_a_secret(finished: SweepFolder, secret: str) -> None:
    assert "1 done" in finished.output
    assert list(finished.results.glob("launch-*/tuner.pkl")), "the search must include Tune's files"
    assert list(finished.folder.glob("tmp/ray/session_*/logs/*")), "the search must include Ray's files"
    assert list(finished.results.glob("wandb/offline-run-*/logs/*")), "the search must include wandb's files"
    assert find_files_with_secret(finished.folder, SECRETS[secret]) == []
    assert SECRETS[secret] not in finished.output


@pytest.mark.ray
def test_token_of_ray_is_in_one_file_that_only_its_owner_can_read(finished: SweepFolder) -> None:
    token = finished.token_path.read_text().strip()
    assert len(token) > 30
    assert token not in finished.output
    assert find_files_with_secret(finished.folder, token) == [finished.token_path]
    mode = finished.token_path.stat().st_mode
    assert mode & 0o077 == 0, f"{finished.token_path} has mode {mode & 0o777:o}"


@pytest.mark.parametrize("usage_stats", [None, "false"])
def test_ray_and_the_hubs_client_send_no_telemetry(usage_stats: str | None) -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")  # variables of the user take precedence
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= {"RAY_USAGE_STATS_ENABLED": usage_stats} if usage_stats else {}
    command = [sys.executable, str(PROGRAMS / "telemetry.py")]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert process.stdout.split() == ["True", "False"]


# ---- links and pickles in a results folder -------------------------------------------------------------------------


def read_tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in list_files(folder)}


def replace_results_with_links(results: Path, outside: Path) -> None:
    """Replace a trial, checkpoints and other parts of a results folder with links to files of the user in `outside`."""
    (trial,) = (path.parent for path in results.glob("launch-001/*/params.json"))
    outside.mkdir()
    trial.rename(outside / "trial")
    trial.symlink_to(outside / "trial")
    for target in (outside / "trial" / "checkpoint_000099", outside / "folder"):
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    second_launch = results / "launch-002" / trial.name
    second_launch.mkdir(parents=True)
    (second_launch / "checkpoint_000007").symlink_to(outside / "folder")
    (results / "launch-old").symlink_to(outside / "folder")
    for name in ("results.md", "results.csv", "report.html", ".running", ".writable"):
        (outside / name).write_text("mine")
        (results / name).unlink(missing_ok=True)
        (results / name).symlink_to(outside / name)


@pytest.mark.ray
def test_sweep_resumes_without_following_links_or_unpickling(
    finished: SweepFolder, small_text: Path, tmp_path: Path
) -> None:
    outside, marker = tmp_path / "outside", tmp_path / "marker"
    replace_results_with_links(finished.results, outside)
    for path in [*finished.results.rglob("*.pkl"), finished.results / "launch-002" / "tuner.pkl"]:
        path.write_bytes(pickle.dumps(MaliciousObject(marker)))
    before = read_tree(outside)

    env = {**finished.env, "RAY_AUTH_TOKEN": USER_TOKEN}
    resumed = replace(finished, env=env).run_sweep(small_text, 0, 1)

    assert "2 done" in resumed.output
    assert read_tree(outside) == before
    assert not marker.exists()
    assert USER_TOKEN not in resumed.output
    assert find_files_with_secret(finished.folder, USER_TOKEN) == []
