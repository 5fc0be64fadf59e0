"""Ray's fake multi-node autoscaler: its workers are further raylets on this machine, started when trials need them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.util import get_node_ip_address

HEAD_TYPE = "ray.head.default"
"""Type that the fake provider gives to the head."""
HEAD_ID = "f" * 51 + "00000"
"""Node id by which the fake provider knows the head."""
PROVIDER = {
    "type": "external",  # `fake_multinode` needs a file that Ray's wheel lacks
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "head_node_id": HEAD_ID,
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
"""Commands that the autoscaler requires, if only as empty lists."""
START_SECONDS = 60


@contextlib.contextmanager
def start_autoscaling_cluster(types: Mapping[str, Any], *, head_cpus: int, max_workers: int) -> Iterator[str]:
    """Start a head and its autoscaler for as long as the context is entered; yield the cluster's address.

    Args:
        types: worker types, as in `available_node_types` of a file for `ray up`.
        max_workers: maximum number of workers of all types together.
    """
    folder = Path(tempfile.mkdtemp(prefix="raylm", dir="/tmp"))  # short enough for Ray's sockets
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    host = get_node_ip_address()  # Ray replaces 127.0.0.1 by it
    head_type = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
    config = {
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{f"{name}_commands": [] for name in COMMANDS},
        "cluster_synced_files": [],
        "cluster_name": "fake",
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {**PROVIDER, "gcs_address": f"{host}:{port}"},
        "available_node_types": {HEAD_TYPE: head_type, **types},
        "head_node_type": HEAD_TYPE,
    }
    (folder / "autoscaler.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    options = [f"--port={port}", f"--node-ip-address={host}", f"--num-cpus={head_cpus}", "--include-dashboard=false"]
    program = str(Path(sys.executable).with_name("ray"))
    command = [program, "start", "--head", "--block", *options, f"--autoscaling-config={folder / 'autoscaler.yaml'}"]
    with (folder / "output").open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_started(head, folder / "output")
        yield f"{host}:{port}"
    finally:
        _kill_processes(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_started(head: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in output.read_text(errors="replace"):
        assert head.poll() is None and time.monotonic() < deadline, output.read_text(errors="replace")[-2000:]
        time.sleep(0.2)


def _kill_processes(head: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill the head and its workers, which have its environment."""
    own = psutil.Process().pid
    for process in psutil.process_iter(["environ"]):
        if process.pid != own and (process.info["environ"] or {}).get("RAY_TMPDIR") == str(folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
    head.wait()
