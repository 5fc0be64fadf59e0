"""Job of `clusters/slurm/raylm.sbatch` on hosts of this machine, with stand-ins for `srun` and `scontrol`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cluster_lab
import pytest
from cluster_lab import BIN_DIR, HOSTS_SCRIPT, NETWORK_PREFIX, ROOT
from commands import EVALUATED
from oracle import hash_best_weights, read_stable_table, wait_for
from ray_cluster import PROGRAMS
from reference_run import train_without_ray

from raylm.config.sweep_file import load_sweep

pytest_plugins = ["commands"]
SKIP_REASON = cluster_lab.find_skip_reason()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(SKIP_REASON), reason=SKIP_REASON)]

JOB_ID = "417"
SWEEP = PROGRAMS / "long_grid.py"


def submit(folder: Path, hosts: dict[str, str], num_nodes: int, text: str) -> subprocess.Popen[bytes]:
    """Run the script as SLURM does: on the first node, with the variables of a job; its output goes to log-N.txt."""
    addresses = [f"{NETWORK_PREFIX}.{10 + node}" for node in range(num_nodes)]
    env = {
        "SLURM_JOB_ID": JOB_ID,
        "SLURM_JOB_NUM_NODES": str(num_nodes),
        "SLURM_JOB_NODELIST": ",".join(addresses),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_CPUS_ON_NODE": "1",
        "HOME": str(folder / "home"),
        "LAB_DIR": str(folder),
        "PATH": f"{PROGRAMS / 'slurm'}:{BIN_DIR}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAYLM_TESTS_LONG_TEXT": text,
        "HF_HUB_OFFLINE": "1",
    }
    script = ROOT / "clusters" / "slurm" / "raylm.sbatch"
    start = f'echo $$ > "{folder}/batch.pid"; cd "{ROOT}"; exec bash "{script}" "{SWEEP}"'
    variables = [f"{name}={value}" for name, value in env.items()]
    command = [str(HOSTS_SCRIPT), "exec", "0", "env", *variables, "bash", "-c", start]
    with (folder / f"log-{num_nodes}.txt").open("wb") as log:
        return subprocess.Popen(command, env=hosts, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def run_on_host(hosts: dict[str, str], host: int, *command: str) -> str:
    arguments = [str(HOSTS_SCRIPT), "exec", str(host), *command]
    return subprocess.run(arguments, env=hosts, check=True, capture_output=True, text=True, timeout=60).stdout


def test_job_at_its_time_limit_is_saved_requeued_and_ends_in_the_same_table(long_text: str, tmp_path: Path) -> None:
    """Two nodes until SIGTERM, then, as the requeued job, one node."""
    (tmp_path / "home").mkdir()
    (tmp_path / "text").mkdir()
    for file in Path(long_text).iterdir():
        (tmp_path / "text" / file.name).write_bytes(file.read_bytes())
    os.environ["RAYLM_TESTS_LONG_TEXT"] = text = str(tmp_path / "text")
    results, log = tmp_path / "home" / "raylm" / "runs" / "chaos", tmp_path / "log-2.txt"
    with cluster_lab.start_hosts(tmp_path, 2) as hosts:
        job = submit(tmp_path, hosts, 2, text)
        wait_for(lambda: EVALUATED in log.read_text() or job.poll() is not None, 120)
        assert job.poll() is None, log.read_text()
        run_on_host(hosts, 0, "kill", "-TERM", (tmp_path / "batch.pid").read_text().strip())
        assert job.wait(timeout=120) == 130, log.read_text()
        assert (tmp_path / "requeued").read_text().split() == [JOB_ID]
        assert "2/2 nodes" in log.read_text() or "On worker node" in log.read_text()
        assert {row["status"] for row in read_stable_table(results).values()} - {"done", "diverged"}
        assert oct((tmp_path / "home" / ".ray" / "auth_token").stat().st_mode)[-3:] == "600"
        assert [run_on_host(hosts, host, "ls", "/tmp").split().count(f"raylm-{JOB_ID}") for host in (0, 1)] == [0, 0]

        again = submit(tmp_path, hosts, 1, text)
        assert again.wait(timeout=240) == 0, (tmp_path / "log-1.txt").read_text()
        assert (tmp_path / "requeued").read_text().split() == [JOB_ID]

    reference = train_without_ray(load_sweep(SWEEP), tmp_path / "reference")
    assert read_stable_table(results) == read_stable_table(reference)
    assert hash_best_weights(results) == hash_best_weights(reference)
