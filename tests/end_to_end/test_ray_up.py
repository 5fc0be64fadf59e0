"""`ray up` to `ray down` of the bundled yaml, on three hosts of this machine with an SSH server each."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics

import cluster_lab
import pytest
from oracle import hash_best_weights, read_stable_table, start_process, wait_for
from reference_run import train_without_ray
from s3 import BUCKET, serve_s3, set_environment

from raylm.config.sweep_file import load_sweep
from raylm.results.open_storage import open_storage

WHY_NOT = cluster_lab.find_skip_reason()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def ports_of_the_docs() -> dict[int, str]:
    """Return each port of the table in docs/cluster.md with who may reach it."""
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \|.*\| ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {port: who for first, last, who in rows for port in range(int(first), int(last or first) + 1)}


def test_from_ray_up_to_ray_down(tmp_path: Path) -> None:
    with cluster_lab.start_cluster(tmp_path) as lab:
        resources = {node["node_ip"]: node["resources_total"] for node in lab.list_nodes() if node["state"] == "ALIVE"}
        assert sorted(resources) == lab.addresses
        assert "CPU" not in resources[lab.addresses[0]], "trials would land on the head"

        # who has the token gets in, and nobody else
        answers = [
            lab.get(path, token) for path in ("/api/version", "/api/jobs/") for token in (None, "0" * 64, lab.token)
        ]
        assert [status for status, _ in answers] == [401, 403, 200] * 2
        head = f"{lab.addresses[0]}:6379"
        for without in (f"RAY_AUTH_TOKEN={'0' * 64}", "RAY_AUTH_MODE=disabled"):
            with pytest.raises(RuntimeError, match="AuthenticationError"):
                lab.run_on_host(1, "bash", "-c", f". ~/.raylm_environment; {without} ray status --address {head}")
        for host in range(3):
            modes = lab.run_on_host(host, "stat", "-c", "%a", "/root/.ray", "/root/.ray/auth_token").split()
            assert modes == ["700", "600"]
            assert lab.token not in lab.run_on_host(host, "ps", "-eo", "args=")

        # what listens is in the docs' table, and the dashboard at home alone
        known = ports_of_the_docs()
        for host in range(3):
            heard = lab.list_listening_ports(host)
            assert {port for _, port in heard} <= set(known)
            assert not {place for place in heard if known[place[1]] == "itself" and place[0] != "127.0.0.1"}

        # a job runs on the cluster, with the code and the settings of the yaml
        script = "import os, raylm; print('code', raylm.__file__, 'storage', os.environ['RAYLM_STORAGE'])"
        said = lab.run_ray("job", "submit", "--", "python", "-c", script)
        assert f"code /root/raylm/raylm/__init__.py storage {lab.storage}" in said and "succeeded" in said

        # each node is looked at, and finds what it needs
        try:
            said = lab.run_on_host(0, "bash", "-c", ". ~/.raylm_environment; raylm doctor")
        except RuntimeError as error:  # what this machine lacks, such as room on its disk, is told too
            said = str(error)
        assert f"3 nodes at {head}" in said
        assert said.count("read, written and removed") == 3, said

        lab.run_ray("down", "-y", str(lab.config_path))
        for worker in (1, 2):  # which `ray down` leaves alone: docs/cluster.md
            lab.run_on_host(worker, "bash", "-c", ". ~/.raylm_environment; ray stop --force")
        assert [lab.list_ray_processes(host) for host in range(3)] == [[], [], []]
    assert not (tmp_path / "hosts").exists()


SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="lab", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": 1, "dropout": 0.1, "epochs": 2,
    "learning_rate": tune.grid_search([1e-3, 2e-3, 3e-3, 4e-3]), "max_train_tokens": 6_000, "evals_per_epoch": 4,
}}, resources=Resources(cpus=1))
"""
PATIENCE = 300


@pytest.mark.timeout(900)
def test_sweep_that_loses_a_worker_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Disconnect one of two workers in the middle; the results are in a bucket."""
    hosts, text = tmp_path / "hosts", tmp_path / "hosts" / "text"
    text.mkdir(parents=True)
    (text / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics))[:60_000])
    (text / "validation.txt").write_text(topics["while"] + topics["break"])
    file = tmp_path / "lab.py"
    file.write_text(SWEEP.format(text=str(text)))
    reference = train_without_ray(load_sweep(file), tmp_path / "reference")

    with serve_s3(tmp_path / "s3.log", host="0.0.0.0") as s3, set_environment(s3.env):
        port = s3.url.rsplit(":", 1)[1]
        in_lab = {**s3.env, "AWS_ENDPOINT_URL": f"http://{cluster_lab.LOCAL_ADDRESS}:{port}"}
        with cluster_lab.start_cluster(hosts, extra_env=in_lab) as lab:
            output = tmp_path / "output"
            command = ["raylm", "run", str(file), "--address", lab.dashboard_url, "--storage", f"s3://{BUCKET}/lab"]
            with start_process(command, output, lab.user_env) as job:
                wait_for(lambda: output.read_text().count("  epoch ") >= 3 or job.poll() is not None, PATIENCE)
                assert job.poll() is None, output.read_text()
                lab.unplug(1)
                assert job.wait(timeout=PATIENCE) == 0, output.read_text()
            states = {node["node_ip"]: node["state"] for node in lab.list_nodes()}
            assert states[lab.addresses[1]] == "DEAD"
        storage = open_storage(f"s3://{BUCKET}/lab/lab")
        with storage.local_copy("") as copy:
            assert read_stable_table(copy) == read_stable_table(reference)
            assert hash_best_weights(copy) == hash_best_weights(reference)
