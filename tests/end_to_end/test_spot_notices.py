"""Spot notices: Ray drains the machine, and its trials migrate."""

from __future__ import annotations

import datetime
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from conftest import build_sweep_command
from oracle import find_newest_checkpoint, hash_best_weights, read_stable_table, start_process, wait_for
from ray._private.state import state
from ray.cluster_utils import Cluster
from ray_cluster import PROGRAMS
from reference_run import train_without_ray

from raylm import spot_notices
from raylm.config.sweep_file import load_sweep
from raylm.tuning.coordinator import Command, Coordinator

pytest_plugins = ["commands"]
PATIENCE = 240


class Metadata(http.server.ThreadingHTTPServer):
    """Metadata service of a machine, as AWS's with IMDSv2 or as Google's."""

    def __init__(self, cloud: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.cloud, self.announced, self.looks = cloud, False, 0

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if self.cloud == "AWS" and path == "/latest/api/token":
            asked = method == "PUT" and headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
            return (200, "a-token") if asked else (400, "")
        if self.cloud == "AWS" and path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != "a-token":
                return 401, ""
            at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
            return (200, json.dumps({"action": "terminate", "time": f"{at:%FT%TZ}"})) if self.announced else (404, "")
        if self.cloud == "Google" and path == "/computeMetadata/v1/instance/preempted":
            if headers.get("metadata-flavor") != "Google":
                return 403, ""
            return 200, "TRUE" if self.announced else "FALSE"
        return 404, ""


class Answer(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, content = self.server.answer(self.command, self.path, headers)
        self.server.looks += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """Machine of the cloud that the test names; only its metadata service answers."""
    with Metadata(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        nobody = "127.0.0.1:9"
        monkeypatch.setenv(spot_notices.AWS_METADATA[0], f"http://{server.place if server.cloud == 'AWS' else nobody}")
        monkeypatch.setenv(spot_notices.GOOGLE_METADATA[0], server.place if server.cloud == "Google" else nobody)
        yield server
        server.shutdown()


@pytest.mark.parametrize("machine", ["AWS"], indirect=True)
def test_notice_of_aws(machine: Metadata) -> None:
    assert spot_notices.check_aws() is None
    machine.announced = True
    notice = spot_notices.check_aws()
    assert notice is not None and 110 <= notice.seconds_left <= 120
    assert notice.message.startswith("AWS will terminate this spot machine at 20")
    with pytest.raises(OSError):
        spot_notices.check_google()


@pytest.mark.parametrize("machine", ["Google"], indirect=True)
def test_notice_of_google(machine: Metadata) -> None:
    assert spot_notices.check_google() is None
    machine.announced = True
    assert spot_notices.check_google() == spot_notices.SpotNotice(30, "Google preempts this spot machine")
    with pytest.raises(OSError):
        spot_notices.check_aws()


@pytest.mark.ray
@pytest.mark.parametrize("machine", ["AWS", pytest.param("Google", marks=pytest.mark.nightly)], indirect=True)
def test_notice_drains_the_node(
    machine: Metadata, ray_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        ray.init(logging_level="ERROR")
        busy = ray.remote(num_cpus=1)(Coordinator).remote()  # an idle node leaves at once
        node = ray.get_runtime_context().get_node_id()
        assert ray.get(busy.get_command.remote(node)) is Command.CONTINUE
        watch = [sys.executable, "-m", "raylm.spot_notices"]
        with start_process(watch, tmp_path / "output") as watcher:
            wait_for(lambda: machine.looks >= 3 and (tmp_path / "output").read_text().endswith(f"{machine.cloud}\n"))
            second = subprocess.run(watch, capture_output=True, text=True, timeout=60, check=True)
            assert "another process on this machine polls already" in second.stdout
            assert state.get_draining_nodes() == {}
            machine.announced = True
            assert watcher.wait(timeout=60) == 0
        assert list(state.get_draining_nodes()) == [node]
        wait_for(lambda: ray.get(busy.get_command.remote(node)) is Command.MIGRATE)
        assert (tmp_path / "output").read_text().endswith("Ray drains this node\n")
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.chaos
def test_trial_migrates_from_a_draining_node(long_text: str, ray_tmpdir: Path, tmp_path: Path) -> None:
    """The trial saves a checkpoint in the middle of its only epoch."""
    file, output = PROGRAMS / "three_long_trials.py", tmp_path / "output"
    reference = train_without_ray(load_sweep(file), tmp_path / "reference")
    trials = {trial.run_name: trial for trial in load_sweep(file).trials()}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        first, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        command = build_sweep_command(file, tmp_path / "runs", "--address", cluster.address)
        with start_process(command, output) as sweep:
            wait_for(lambda: output.read_text().count("  started") == 2, PATIENCE)
            drain(cluster.address, first.node_id)
            wait_for(lambda: "starts again" in output.read_text() or sweep.poll() is not None, PATIENCE)
            said = output.read_text()
            (moved,) = [line.split()[0] for line in said.splitlines() if "starts again" in line]
            assert "its machine is about to be taken away; its checkpoint is saved" in said
            assert find_newest_checkpoint(tmp_path / "runs" / "spot", trials[moved]) is not None
            assert sweep.wait(timeout=PATIENCE) == 0, output.read_text()
    finally:
        cluster.shutdown()
    assert output.read_text().count("starts again") == 1  # nothing has begun on that node since
    assert read_stable_table(tmp_path / "runs" / "spot") == read_stable_table(reference)
    assert hash_best_weights(tmp_path / "runs" / "spot") == hash_best_weights(reference)


def drain(address: str, node: str) -> None:
    """Drain a node as `raylm.spot_notices` does on its own machine; here, several nodes are on one machine."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", "120"], check=True)
