"""A running trial's numbers reach Prometheus, and the Grafana dashboard that is shipped asks for nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raylm.tuning.reporting import GAUGE_DESCRIPTIONS, TAG_KEYS

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "raylm.json"

SETTING = """
import re, sys, time, urllib.request
import ray
from raylm.metrics import Gauges
from raylm.progress import Step

ray.init("local", num_cpus=1, include_dashboard=True, log_to_driver=False)

@ray.remote
def trial():
    gauges = Gauges("sweep-of-mine", "run-of-mine", "cpu")
    gauges.evaluated({"val_loss": 3.5, "adj_val_loss": 4.5})
    while True:
        gauges.stepped(Step(5, 10, 3.25, 1000, 250.0))
        time.sleep(0.5)

running = trial.remote()
(node,) = ray.nodes()
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
deadline = time.monotonic() + 90
while time.monotonic() < deadline:
    time.sleep(1)
    text = urllib.request.urlopen(address).read().decode()
    lines = re.findall(r'^(ray_raylm_\\w+){(.*)} (\\S+)$', text, re.MULTILINE)
    if lines:
        break
for name, labels, value in lines:
    assert 'run="run-of-mine"' in labels and 'sweep="sweep-of-mine"' in labels, labels
    print(name, value)
ray.cancel(running)
"""


@pytest.mark.slow
def test_prometheus_is_handed_the_numbers_of_a_trial(ray_tmpdir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SETTING], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines() if line.startswith("ray_raylm"))
    assert told.keys() == {f"ray_{name}" for name in GAUGE_DESCRIPTIONS}
    assert float(told.pop("ray_raylm_memory_bytes")) > 1e7
    assert {name.removeprefix("ray_raylm_"): float(value) for name, value in told.items()} == {
        "train_loss": 3.25, "val_loss": 3.5, "adj_val_loss": 4.5,
        "step": 5, "total_steps": 10, "tokens_seen": 1000, "tokens_per_second": 250,
    }  # fmt: skip


def expressions(board: Any) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def test_the_grafana_dashboard_asks_for_what_is_exported_and_all_of_it() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = set(re.findall(r"\w*raylm_\w+", " ".join(expressions(board))))
    assert asked == {f"ray_{name}" for name in GAUGE_DESCRIPTIONS}
    variables = {one["name"]: one["query"] for one in board["templating"]["list"] if one["type"] == "query"}
    assert list(variables) == list(TAG_KEYS)
    for query in variables.values():
        assert set(re.findall(r"\w*raylm_\w+", query)) <= asked
    for expression in expressions(board):
        assert all(f'{tag}=~"${tag}"' in expression for tag in TAG_KEYS)
