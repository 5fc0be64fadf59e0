"""Spot notices: Ray drains the node of a machine with a notice, and its trials migrate."""

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
TIMEOUT = 240
"""Seconds to wait for an event of a sweep."""
UNUSED_ADDRESS = "127.0.0.1:9"
"""Address at which nothing listens."""


class MetadataServer(http.server.ThreadingHTTPServer):
    """Stand-in for the metadata service of a machine: AWS's with IMDSv2, or Google's.

    Attributes:
        has_notice: set by a test when the cloud announces the end of the machine.
        num_requests: requests until now.
    """

    def __init__(self, cloud: str) -> None:
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.cloud, self.has_notice, self.num_requests = cloud, False, 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Return status and content for a request; names in `headers` are lower-case."""
        if self.cloud == "AWS" and path == "/latest/api/token":
            is_valid = method == "PUT" and headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
            return (200, "a-token") if is_valid else (400, "")
        if self.cloud == "AWS" and path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != "a-token":
                return 401, ""
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
            return (200, json.dumps({"action": "terminate", "time": f"{end:%FT%TZ}"})) if self.has_notice else (404, "")
        if self.cloud == "Google" and path == "/computeMetadata/v1/instance/preempted":
            if headers.get("metadata-flavor") != "Google":
                return 403, ""
            return 200, "TRUE" if self.has_notice else "FALSE"
        return 404, ""


class RequestHandler(http.server.BaseHTTPRequestHandler):
    """Handler of the requests to a `MetadataServer`."""

    server: MetadataServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, content = self.server.respond(self.command, self.path, headers)
        self.server.num_requests += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """Metadata service of the cloud in the test's parameter; that of the other cloud does not respond."""
    with MetadataServer(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = {"AWS": UNUSED_ADDRESS, "Google": UNUSED_ADDRESS, server.cloud: server.address}
        monkeypatch.setenv(spot_notices.AWS_METADATA[0], f"http://{addresses['AWS']}")
        monkeypatch.setenv(spot_notices.GOOGLE_METADATA[0], addresses["Google"])
        yield server
        server.shutdown()


@pytest.mark.parametrize("machine", ["AWS"], indirect=True)
def test_aws_notice_is_read_with_its_time(machine: MetadataServer) -> None:
    assert spot_notices.check_aws() is None
    machine.has_notice = True
    notice = spot_notices.check_aws()
    assert notice is not None and 110 <= notice.seconds_left <= 120
    assert notice.message.startswith("AWS will terminate this spot machine at 20")
    with pytest.raises(OSError):
        spot_notices.check_google()


@pytest.mark.parametrize("machine", ["Google"], indirect=True)
def test_google_notice_is_read(machine: MetadataServer) -> None:
    assert spot_notices.check_google() is None
    machine.has_notice = True
    assert spot_notices.check_google() == spot_notices.SpotNotice(30, "Google preempts this spot machine")
    with pytest.raises(OSError):
        spot_notices.check_aws()


@pytest.mark.ray
@pytest.mark.parametrize("machine", ["AWS", pytest.param("Google", marks=pytest.mark.nightly)], indirect=True)
def test_notice_drains_the_node(
    machine: MetadataServer, ray_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        ray.init(logging_level="ERROR")
        coordinator = ray.remote(num_cpus=1)(Coordinator).remote()  # a drained node without actors ends at once
        node_id = ray.get_runtime_context().get_node_id()
        assert ray.get(coordinator.get_command.remote(node_id)) is Command.CONTINUE
        command = [sys.executable, "-m", "raylm.spot_notices"]
        with start_process(command, output) as watcher:
            wait_for(lambda: machine.num_requests >= 3 and output.read_text().endswith(f"{machine.cloud}\n"))
            second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert "another process on this machine polls already" in second.stdout
            assert state.get_draining_nodes() == {}
            machine.has_notice = True
            assert watcher.wait(timeout=60) == 0
        assert list(state.get_draining_nodes()) == [node_id]
        wait_for(lambda: ray.get(coordinator.get_command.remote(node_id)) is Command.MIGRATE)
        assert output.read_text().endswith("Ray drains this node\n")
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.chaos
def test_trial_migrates_from_a_draining_node(long_text: str, ray_tmpdir: Path, tmp_path: Path) -> None:
    """Drain the node of a trial in the middle of its only epoch, where it saves a checkpoint."""
    file, output = PROGRAMS / "three_long_trials.py", tmp_path / "output"
    reference = train_without_ray(load_sweep(file), tmp_path / "reference")
    trials = {trial.run_name: trial for trial in load_sweep(file).trials()}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        drained_node, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        command = build_sweep_command(file, tmp_path / "runs", "--address", cluster.address)
        with start_process(command, output) as sweep:
            wait_for(lambda: output.read_text().count("  started") == 2, TIMEOUT)
            drain_node(cluster.address, drained_node.node_id)
            wait_for(lambda: "starts again" in output.read_text() or sweep.poll() is not None, TIMEOUT)
            text = output.read_text()
            (migrated,) = [line.split()[0] for line in text.splitlines() if "starts again" in line]
            assert "its machine is about to be taken away; its checkpoint is saved" in text
            assert find_newest_checkpoint(tmp_path / "runs" / "spot", trials[migrated]) is not None
            assert sweep.wait(timeout=TIMEOUT) == 0, output.read_text()
    finally:
        cluster.shutdown()
    assert output.read_text().count("starts again") == 1  # no trial has started on the drained node
    assert read_stable_table(tmp_path / "runs" / "spot") == read_stable_table(reference)
    assert hash_best_weights(tmp_path / "runs" / "spot") == hash_best_weights(reference)


def drain_node(address: str, node_id: str) -> None:
    """Drain a node; `raylm.spot_notices` drains that of its machine, and these nodes share a machine."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", "120"], check=True)
