"""A sweep whose results are in a bucket that is busy and stalls: it loses nothing, also where it is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from conftest import build_sweep_command
from oracle import hash_best_weights, read_stable_table, start_process, wait_for
from ray.cluster_utils import Cluster
from ray_cluster import PROGRAMS, start_cluster
from reference_run import train_without_ray
from s3 import SECRET_KEY, S3Server, serve_busy_proxy, set_environment

from raylm.config.sweep_file import load_sweep
from raylm.results.bucket import Bucket

pytest_plugins = ["storages"]
pytestmark = pytest.mark.ray

FILE = PROGRAMS / "bucket_grid.py"
STALL_SECONDS = 20.0


@pytest.fixture(scope="module")
def reference(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the sweep, made without Ray."""
    return train_without_ray(load_sweep(FILE), tmp_path_factory.mktemp("reference"))


def build_command(bucket: Bucket, cluster: Cluster) -> list[str]:
    """Return the command that runs the sweep in a bucket."""
    return [*build_sweep_command(FILE, Path())[:-1], bucket.uri, "--address", cluster.address]


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_sweep_in_a_bucket_is_the_same_after_a_kill_refused_requests_and_a_stall(
    s3: S3Server, bucket: Bucket, reference: Path, tmp_path: Path
) -> None:
    with (
        serve_busy_proxy(s3, refuse_every=5) as proxy,
        set_environment({"AWS_ENDPOINT_URL": proxy.url}),
        start_cluster(num_cpus=2) as cluster,
    ):
        command = build_command(bucket, cluster)
        with start_process(command, tmp_path / "first") as first:
            wait_for(lambda: (tmp_path / "first").read_text().count("  epoch ") >= 2, 300)
            first.kill()
        with start_process(command, tmp_path / "second") as second:
            wait_for(lambda: (tmp_path / "second").read_text().count("  epoch ") >= 1, 300)
            s3.process.send_signal(signal.SIGSTOP)
            time.sleep(STALL_SECONDS)
            s3.process.send_signal(signal.SIGCONT)
            assert second.wait(timeout=400) == 0, (tmp_path / "second").read_text()
        assert proxy.num_refused > 10

    results = bucket.subfolder("small")
    with results.local_copy("") as copy:
        assert read_stable_table(copy) == read_stable_table(reference)
        assert hash_best_weights(copy) == hash_best_weights(reference)
        files_with_key = [
            path for path in copy.rglob("*") if path.is_file() and SECRET_KEY.encode() in path.read_bytes()
        ]
        assert files_with_key == []
    assert SECRET_KEY not in (tmp_path / "first").read_text() + (tmp_path / "second").read_text()


@pytest.mark.chaos
def test_killed_sweep_in_a_google_bucket_resumes(google_bucket: Bucket, reference: Path, tmp_path: Path) -> None:
    with start_cluster(num_cpus=2) as cluster:
        command = build_command(google_bucket, cluster)
        with start_process(command, tmp_path / "first") as first:
            wait_for(lambda: (tmp_path / "first").read_text().count("  epoch ") >= 2 or first.poll() is not None, 300)
            first.kill()
        with start_process(command, tmp_path / "second") as second:
            assert second.wait(timeout=300) == 0, (tmp_path / "second").read_text()
    with google_bucket.subfolder("small").local_copy("") as copy:
        assert read_stable_table(copy) == read_stable_table(reference)
        assert hash_best_weights(copy) == hash_best_weights(reference)
