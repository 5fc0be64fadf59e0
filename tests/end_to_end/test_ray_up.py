"""Cluster of `clusters/onprem.yaml` from `ray up` to `ray down`, on three hosts of this machine with SSH servers."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics

import cluster_lab
import pytest
from cluster_lab import LabCluster
from oracle import hash_best_weights, read_stable_table, start_process, wait_for
from reference_run import train_without_ray
from s3 import BUCKET, serve_s3, set_environment

from raylm.config.sweep_file import load_sweep
from raylm.results.open_storage import open_storage

SKIP_REASON = cluster_lab.find_skip_reason()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(SKIP_REASON), reason=SKIP_REASON)]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def read_documented_ports() -> dict[int, str]:
    """Return the clients that may connect to each port, from the table in docs/cluster.md."""
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \|.*\| ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {port: clients for first, last, clients in rows for port in range(int(first), int(last or first) + 1)}


def test_cluster_is_secured_and_works_from_ray_up_to_ray_down(tmp_path: Path) -> None:
    with cluster_lab.start_cluster(tmp_path) as lab:
        resources = {node["node_ip"]: node["resources_total"] for node in lab.list_nodes() if node["state"] == "ALIVE"}
        assert sorted(resources) == lab.addresses
        assert "CPU" not in resources[lab.addresses[0]], "the head could run trials"

        assert_token_is_required_and_private(lab)
        assert_open_ports_are_documented(lab)
        assert_jobs_use_the_code_and_settings_of_the_yaml(lab)
        assert_doctor_checks_every_node(lab)

        lab.run_ray("down", "-y", str(lab.config_path))
        for worker in (1, 2):  # `ray down` does not stop them: docs/cluster.md
            lab.run_on_host(worker, "bash", "-c", ". ~/.raylm_environment; ray stop --force")
        assert [lab.list_ray_processes(host) for host in range(3)] == [[], [], []]
    assert not (tmp_path / "hosts").exists()


def assert_token_is_required_and_private(lab: LabCluster) -> None:
    """Expect the dashboard and Ray to require the token, and each host to keep it in a private file alone."""
    responses = [
        lab.get(path, token) for path in ("/api/version", "/api/jobs/") for token in (None, "0" * 64, lab.token)
    ]
    assert [status for status, _ in responses] == [401, 403, 200] * 2
    for setting in (f"RAY_AUTH_TOKEN={'0' * 64}", "RAY_AUTH_MODE=disabled"):
        command = f". ~/.raylm_environment; {setting} ray status --address {lab.addresses[0]}:6379"
        with pytest.raises(RuntimeError, match="AuthenticationError"):
            lab.run_on_host(1, "bash", "-c", command)
    for host in range(3):
        modes = lab.run_on_host(host, "stat", "-c", "%a", "/root/.ray", "/root/.ray/auth_token").split()
        assert modes == ["700", "600"]
        assert lab.token not in lab.run_on_host(host, "ps", "-eo", "args=")


def assert_open_ports_are_documented(lab: LabCluster) -> None:
    """Expect no port beside those of the docs' table; ports for the head itself must listen on 127.0.0.1."""
    clients = read_documented_ports()
    local_ports = {port for port, text in clients.items() if text == "the head itself"}
    assert local_ports
    for host in range(3):
        listening = lab.list_listening_ports(host)
        assert {port for _, port in listening} <= set(clients)
        assert {address for address, port in listening if port in local_ports} <= {"127.0.0.1"}


def assert_jobs_use_the_code_and_settings_of_the_yaml(lab: LabCluster) -> None:
    """Expect a job to import the copied package and to have the storage of the yaml."""
    script = "import os, raylm; print('code', raylm.__file__, 'storage', os.environ['RAYLM_STORAGE'])"
    output = lab.run_ray("job", "submit", "--", "python", "-c", script)
    assert f"code /root/raylm/raylm/__init__.py storage {lab.storage}" in output and "succeeded" in output


def assert_doctor_checks_every_node(lab: LabCluster) -> None:
    """Expect `raylm doctor` to examine all nodes and to find their storage usable."""
    try:
        output = lab.run_on_host(0, "bash", "-c", ". ~/.raylm_environment; raylm doctor")
    except RuntimeError as error:  # it also fails if this machine lacks something, for example disk space
        output = str(error)
    assert f"3 nodes at {lab.addresses[0]}:6379" in output
    assert output.count("read, written and removed") == 3, output


SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="lab", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": 1, "dropout": 0.1, "epochs": 2,
    "learning_rate": tune.grid_search([1e-3, 2e-3, 3e-3, 4e-3]), "max_train_tokens": 6_000, "evals_per_epoch": 4,
}}, resources=Resources(cpus=1))
"""
TIMEOUT = 300
"""Seconds to wait for an event of a sweep."""


@pytest.mark.timeout(900)
def test_sweep_that_loses_a_worker_has_the_results_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Disconnect one of two workers in the middle of a sweep with a bucket as its storage."""
    hosts, text = tmp_path / "hosts", tmp_path / "hosts" / "text"
    text.mkdir(parents=True)
    (text / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics))[:60_000])
    (text / "validation.txt").write_text(topics["while"] + topics["break"])
    file = tmp_path / "lab.py"
    file.write_text(SWEEP.format(text=str(text)))
    reference = train_without_ray(load_sweep(file), tmp_path / "reference")

    with serve_s3(tmp_path / "s3.log", host="0.0.0.0") as s3, set_environment(s3.env):
        port = s3.url.rsplit(":", 1)[1]
        hosts_env = {**s3.env, "AWS_ENDPOINT_URL": f"http://{cluster_lab.LOCAL_ADDRESS}:{port}"}
        with cluster_lab.start_cluster(hosts, extra_env=hosts_env) as lab:
            output = tmp_path / "output"
            command = ["raylm", "run", str(file), "--address", lab.dashboard_url, "--storage", f"s3://{BUCKET}/lab"]
            with start_process(command, output, lab.user_env) as job:
                wait_for(lambda: output.read_text().count("  epoch ") >= 3 or job.poll() is not None, TIMEOUT)
                assert job.poll() is None, output.read_text()
                lab.unplug(1)
                assert job.wait(timeout=TIMEOUT) == 0, output.read_text()
            states = {node["node_ip"]: node["state"] for node in lab.list_nodes()}
            assert states[lab.addresses[1]] == "DEAD"
        storage = open_storage(f"s3://{BUCKET}/lab/lab")
        with storage.local_copy("") as copy:
            assert read_stable_table(copy) == read_stable_table(reference)
            assert hash_best_weights(copy) == hash_best_weights(reference)
