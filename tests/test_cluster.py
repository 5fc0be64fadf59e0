"""`ray up` for real: three hosts of this machine, each with its own SSH, from the shipped yaml to `ray down`."""

from __future__ import annotations

import re
from pathlib import Path

import cluster_lab
import pytest

WHY_NOT = cluster_lab.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

DOCS = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"


def ports_of_the_docs() -> dict[int, str]:
    """Each port of the table in docs/cluster.md, with who is said to reach it."""
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \|.*\| ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {port: who for first, last, who in rows for port in range(int(first), int(last or first) + 1)}


def test_from_ray_up_to_ray_down(tmp_path: Path) -> None:
    with cluster_lab.cluster(tmp_path) as lab:
        resources = {node["node_ip"]: node["resources_total"] for node in lab.nodes() if node["state"] == "ALIVE"}
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
                lab.host(1, "bash", "-c", f". ~/.raylm_environment; {without} ray status --address {head}")
        for host in range(3):
            modes = lab.host(host, "stat", "-c", "%a", "/root/.ray", "/root/.ray/auth_token").split()
            assert modes == ["700", "600"]
            assert lab.token not in lab.host(host, "ps", "-eo", "args=")

        # what listens is in the docs' table, and the dashboard at home alone
        known = ports_of_the_docs()
        for host in range(3):
            heard = lab.listening(host)
            assert {port for _, port in heard} <= set(known)
            assert not {place for place in heard if known[place[1]] == "itself" and place[0] != "127.0.0.1"}

        # a job runs on the cluster, with the code and the settings of the yaml
        script = "import os, raylm; print('code', raylm.__file__, 'storage', os.environ['RAYLM_STORAGE'])"
        said = lab.ray("job", "submit", "--", "python", "-c", script)
        assert f"code /root/raylm/raylm/__init__.py storage {lab.storage}" in said and "succeeded" in said

        lab.ray("down", "-y", str(lab.config))
        for worker in (1, 2):  # which `ray down` leaves alone: docs/cluster.md
            lab.host(worker, "bash", "-c", ". ~/.raylm_environment; ray stop --force")
        assert [lab.ray_processes(host) for host in range(3)] == [[], [], []]
    assert not (tmp_path / "hosts").exists()
