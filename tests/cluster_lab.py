"""Cluster of network namespaces on this machine, started from `clusters/onprem.yaml` by `ray up` over real SSH."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from oracle import find_free_port

ROOT = Path(__file__).resolve().parents[1]
HOSTS_SCRIPT = Path(__file__).with_name("lab_hosts.sh")
BIN_DIR = Path(sys.executable).parent
LAB_ID = os.getpid() % 250
"""Prefix of the lab's names in the kernel, so that two labs on one machine do not collide."""
NETWORK_PREFIX = f"10.77.{LAB_ID}"
LOCAL_ADDRESS = f"{NETWORK_PREFIX}.1"
"""Address at which hosts reach this machine, for example a server of a test."""


def find_skip_reason() -> str:
    """Return the reason to skip tests because this machine cannot create hosts; an empty string if it can."""
    if os.geteuid() != 0:
        return "needs root, to create network namespaces"
    if missing := [name for name in ("ip", "nsenter", "unshare", "rsync", "ssh", "sshd") if shutil.which(name) is None]:
        return f"needs {', '.join(missing)} (apt-get install iproute2 openssh-server openssh-client rsync)"
    probe = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "ip", "link", "add", "lab0", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"needs namespaces with a bridge: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass(frozen=True)
class LabCluster:
    """Cluster on hosts of this machine. Host 0 is the head, which runs no trials."""

    folder: Path
    """Folder with the home of the launching user, the homes of the hosts, logs and the yaml."""
    config_path: Path
    """Cluster file for `ray up`."""
    addresses: list[str]
    """Addresses of the hosts, the head's first."""
    user_env: Mapping[str, str]
    """Environment variables of the launching user: this environment's `ray` and `python`, and the cluster's token."""
    hosts_env: Mapping[str, str]
    """Environment variables of lab_hosts.sh."""
    dashboard_url: str
    """URL to which `ray dashboard` forwards the head's dashboard, http://127.0.0.1:PORT."""

    @property
    def storage(self) -> Path:
        """Shared folder, RAYLM_STORAGE on every host."""
        return self.folder / "storage"

    @property
    def token(self) -> str:
        """Token of the cluster."""
        return (self.folder / "home" / ".ray" / "auth_token").read_text()

    def run_ray(self, *arguments: str, timeout: float = 120) -> str:
        """Return the output of a `ray` command of the launching user."""
        return _run_command(["ray", *arguments], self.user_env, timeout)

    def run_on_host(self, host: int, *command: str, timeout: float = 60) -> str:
        """Return the output of a command on a host."""
        return _run_command([str(HOSTS_SCRIPT), "exec", str(host), *command], self.hosts_env, timeout)

    def unplug(self, host: int) -> None:
        """Disconnect a host from the network; it keeps running."""
        _run_command([str(HOSTS_SCRIPT), "link", str(host), "down"], self.hosts_env, 30)

    def list_ray_processes(self, host: int) -> list[str]:
        """Return the processes of Ray on a host: pid and the beginning of the command line."""
        lines = self.run_on_host(host, "ps", "-eo", "pid=,args=").splitlines()
        return [line.strip()[:120] for line in lines if re.search(r"ray::|/ray/|\bray (start|stop)\b", line)]

    def list_listening_ports(self, host: int) -> set[tuple[str, int]]:
        """Return the TCP addresses and ports on which a host listens."""
        lines = self.run_on_host(host, "ss", "-Hltn").splitlines()
        pairs = [line.split()[3].rsplit(":", 1) for line in lines]
        return {(address.strip("[]").removeprefix("::ffff:"), int(port)) for address, port in pairs}

    def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        """Return status and body of the dashboard's response to a request with this token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.dashboard_url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes of the cluster from the dashboard's API."""
        status, body = self.get("/api/v0/nodes?detail=true", self.token)
        if status != 200:
            raise RuntimeError(f"the dashboard responds with status {status}: {body}")
        nodes: list[dict[str, Any]] = json.loads(body)["data"]["result"]["result"]
        return nodes

    def wait_for_nodes(self, num_nodes: int, timeout: float) -> None:
        """Wait until `num_nodes` nodes are alive: `ray up` returns before the workers have joined."""
        end = time.monotonic() + timeout
        while (alive := sum(node["state"] == "ALIVE" for node in self.list_nodes())) != num_nodes:
            if time.monotonic() > end:
                log = self.run_on_host(0, "sh", "-c", "tail -n 200 /tmp/ray/session_latest/logs/monitor.*")
                raise TimeoutError(
                    f"{alive} nodes are alive after {timeout} s, not {num_nodes}. The head's log:\n{log}"
                )
            time.sleep(0.5)


def build_hosts_environment(folder: Path) -> dict[str, str]:
    """Return the environment variables of lab_hosts.sh for hosts with their files in a folder that all of them see."""
    shared = {str(folder), sys.prefix, sys.base_prefix, str(ROOT)}
    return {
        "PATH": os.environ["PATH"],
        "LAB_DIR": str(folder),
        "LAB_NET": NETWORK_PREFIX,
        "LAB_TAG": f"lab{LAB_ID}",
        "LAB_SHARE": " ".join(sorted(shared)),
    }


@contextlib.contextmanager
def start_hosts(folder: Path, num_hosts: int) -> Iterator[dict[str, str]]:
    """Start hosts without a Ray until the context exits; yield the environment variables of lab_hosts.sh."""
    env = build_hosts_environment(folder)
    try:
        _run_command([str(HOSTS_SCRIPT), "up", str(num_hosts)], env, 60)
        yield env
    finally:
        _run_command([str(HOSTS_SCRIPT), "down"], env, 60)


@contextlib.contextmanager
def start_cluster(
    folder: Path, num_workers: int = 2, extra_env: Mapping[str, str] | None = None
) -> Iterator[LabCluster]:
    """Start hosts and the cluster of `clusters/onprem.yaml` on them; yield it when all workers are alive.

    Args:
        folder: empty folder for homes, logs, temporary files and the storage.
        num_workers: hosts besides the head.
        extra_env: environment variables of the hosts' processes besides those of the yaml, e.g. AWS_ENDPOINT_URL.
    """
    for name in ("home", "temporary", "storage"):
        (folder / name).mkdir()
    dashboard = f"http://127.0.0.1:{find_free_port()}"
    user = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "RAY_TMPDIR": str(folder / "temporary"),
        "PATH": f"{BIN_DIR}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": dashboard,
    }
    hosts = build_hosts_environment(folder)
    addresses = [f"{NETWORK_PREFIX}.{10 + host}" for host in range(num_workers + 1)]
    config = folder / "onprem.yaml"
    config.write_text(yaml.safe_dump(_build_config(folder, addresses, extra_env or {}), sort_keys=False))
    lab = LabCluster(folder, config, addresses, user, hosts, dashboard)
    try:
        _run_command([str(HOSTS_SCRIPT), "up", str(num_workers + 1)], hosts, 60)
        _run_command(["bash", "-c", "umask 077; ray get-auth-token --generate"], user, 60)
        lab.run_ray("up", "-y", str(config), timeout=180)
        with _forward_dashboard(lab):
            lab.wait_for_nodes(num_workers + 1, 240)
            yield lab
    finally:
        _run_command([str(HOSTS_SCRIPT), "down"], hosts, 60)


def _build_config(folder: Path, addresses: list[str], extra_env: Mapping[str, str]) -> dict[str, Any]:
    """Return `clusters/onprem.yaml` with its CHANGE lines filled in and this Python instead of an installation."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "onprem.yaml").read_text(encoding="utf-8"))
    config["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(folder / "id_ed25519")}
    settings = {**extra_env, "RAYLM_STORAGE": str(folder / "storage"), "PYTHONPATH": "/root/raylm"}
    exports = [f"export {name}={value}" for name, value in settings.items()]
    *before, install = config["setup_commands"]
    assert "scripts/install" in install
    lines = " ".join(f"'{line}'" for line in [*exports, f"export PATH={BIN_DIR}:$PATH"])
    config["setup_commands"] = [*before, f"printf '%s\\n' {lines} >> ~/.raylm_environment"]
    limits = {  # without them, Ray gives each host all memory and CPUs of this machine
        "head_start_ray_commands": "--object-store-memory=100000000",
        "worker_start_ray_commands": "--object-store-memory=100000000 --num-cpus=2",
    }
    for name, options in limits.items():
        config[name] = [line.replace("ray start", f"ray start {options}", 1) for line in config[name]]
    return config


@contextlib.contextmanager
def _forward_dashboard(lab: LabCluster) -> Iterator[None]:
    """Run `ray dashboard` until the context exits."""
    port = lab.dashboard_url.rsplit(":", 1)[1]
    command = ["ray", "dashboard", str(lab.config_path), "--port", port]
    with (lab.folder / "dashboard.log").open("w") as log:
        tunnel = subprocess.Popen(command, env=dict(lab.user_env), cwd=ROOT, stdout=log, stderr=log)
        try:
            _wait_for_dashboard(lab)
            yield
        finally:
            tunnel.terminate()
            tunnel.wait(timeout=30)


def _wait_for_dashboard(lab: LabCluster) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            lab.get("/api/version", lab.token)
            return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _run_command(command: list[str], env: Mapping[str, str], timeout: float) -> str:
    """Return the output of a command; raise an error with its output if it fails."""
    finished = subprocess.run(
        command,
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {finished.returncode}:\n{finished.stdout}")
    return finished.stdout
