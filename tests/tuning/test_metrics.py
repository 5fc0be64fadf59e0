"""A running trial's numbers reach Prometheus, and the Grafana dashboard that is shipped asks for nothing else."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import ray
from oracle import wait_for
from trial_hooks import export_metrics

from raylm.tuning.reporting import GAUGE_DESCRIPTIONS, TAG_KEYS

RUN = "own-run"
DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "raylm.json"


def read_exported(address: str, run: str) -> dict[str, float]:
    """Return the metrics of a run that a node exports, by name."""
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    exported = re.findall(r"^(ray_raylm_\w+){(.*)} (\S+)$", text, re.MULTILINE)
    return {
        name: float(value)
        for name, labels, value in exported
        if f'run="{run}"' in labels and 'sweep="own-sweep"' in labels
    }


def test_prometheus_gets_the_metrics_of_a_trial(ray_address: str) -> None:
    ray.init(ray_address, log_to_driver=False, logging_level="ERROR")
    try:
        trial = ray.remote(num_cpus=1)(export_metrics).remote("own-sweep", RUN)
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        wait_for(lambda: read_exported(address, RUN), poll_seconds=0.5)
        values = read_exported(address, RUN)
        ray.cancel(trial, force=True)
    finally:
        ray.shutdown()
    assert values.keys() == {f"ray_{name}" for name in GAUGE_DESCRIPTIONS}
    assert values.pop("ray_raylm_memory_bytes") > 1e7
    assert {name.removeprefix("ray_raylm_"): value for name, value in values.items()} == {
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
