"""Cluster files: valid for Ray and Google, without secrets and open ports, with every line to change marked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from googleapiclient.discovery_cache import get_static_doc
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
AWS, ONPREM, GCP = ROOT / "cluster.yaml", ROOT / "clusters" / "onprem.yaml", ROOT / "clusters" / "gcp.yaml"
YAMLS = [AWS, ONPREM, GCP]


def load(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


# ---- Google Cloud and a lab ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ONPREM, GCP], ids=lambda path: path.name)
def test_schema_of_ray_accepts_the_file(path: Path) -> None:
    """AWS's is looked at in test_cluster_aws.py, where the launcher goes on after the schema."""
    validate_config(prepare_config(load(path)))


def test_google_knows_every_field_of_its_machines() -> None:
    """Ray's schema does not look into node_config; Google's description of its API does."""
    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]

    types: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema["type"]
        assert isinstance(value, types[kind]), f"{where} is to be of type {kind}"
        if kind == "array":
            for number, item in enumerate(value):
                check(item, schema["items"], f"{where}[{number}]")
        elif kind == "object":
            for name, item in value.items():
                known = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
                assert known, f"{where}.{name} is unknown to Google"
                check(item, known, f"{where}.{name}")
        elif "enum" in schema:
            assert value in schema["enum"], f"{where}: {value}"

    for name, kind in load(GCP)["available_node_types"].items():
        config = kind["node_config"]
        for disk in config["disks"]:  # an int64, which JSON carries as text; Google takes either
            disk["initializeParams"]["diskSizeGb"] = str(disk["initializeParams"]["diskSizeGb"])
        check(config, {"$ref": "Instance"}, name)
        if name != "head":
            assert config["scheduling"]["provisioningModel"] == "SPOT" and kind.get("min_workers", 0) == 0
            assert [one["email"].split("@")[0] for one in config["serviceAccounts"]] == ["raylm-worker"]


# ---- what all three have in common --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_start_of_ray_needs_the_token(path: Path) -> None:
    config = load(path)
    head = " ".join(config["head_start_ray_commands"])
    worker = " ".join(config["worker_start_ray_commands"])
    for start in (head, worker):
        assert re.search(r"RAY_AUTH_MODE=token( RAY_\w+=\d+)* ray start", start)
    assert "--dashboard-host=127.0.0.1" in head and "--dashboard-host" not in worker
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("RAY_AUTH_MODE=token" in line and "~/.raylm_environment" in line for line in config["setup_commands"])


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_mounted_files_are_those_needed_to_install(path: Path) -> None:
    mounts = load(path)["file_mounts"]
    assert mounts == load(AWS)["file_mounts"]
    code = {remote: local for remote, local in mounts.items() if remote != "~/.ray/auth_token"}
    assert {remote.removeprefix("~/raylm/") for remote in code} == set(code.values())
    assert all((ROOT / local).exists() for local in code.values())
    named = re.findall(r'^(?:readme|license-files) = \[?"(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(named) <= set(code.values())


SECRET = re.compile(
    r"AKIA\w{16}|-----BEGIN|\b[0-9a-f]{40,}\b|\bhf_\w{20}|(?i:secret|password|api_key|access_key)\w*\s*[:=]"
)


@pytest.mark.parametrize("path", [*YAMLS, *sorted((ROOT / "clusters" / "aws").iterdir())], ids=lambda path: path.name)
def test_no_secret_and_no_open_door(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SECRET.search(text)
    assert "FullAccess" not in text and "0.0.0.0" not in text and "::/0" not in text


PLACEHOLDERS = re.compile(
    r"\b(ami-0{16}\d|sg-0{17}|BUCKET|PROJECT|192\.168\.[\d.]+|us-(?:west|central)[\w-]*|MaxPrice)\b"
)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_line_that_a_user_must_change_is_marked_and_explained(path: Path) -> None:
    """A CHANGE begins a comment of some words above the setting."""
    lines = path.read_text(encoding="utf-8").splitlines()
    marked: set[int] = set()
    for number, line in enumerate(lines):
        if "CHANGE" in line and number > 3:
            assert re.match(r"\s*# CHANGE: \w+", line), line
            end = next(index for index in range(number, len(lines)) if not lines[index].lstrip().startswith("#"))
            block = end
            while block + 1 < len(lines) and (
                len(lines[block + 1]) - len(lines[block + 1].lstrip()) > len(lines[end]) - len(lines[end].lstrip())
            ):
                block += 1
            marked |= set(range(end, block + 1))
            said = " ".join(lines[number:end])
            assert len(said.split()) > 3, f"line {number + 1}: what is to be changed, and into what?"
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("#") and PLACEHOLDERS.search(line.split(" # ")[0]):
            assert number in marked, f"line {number + 1} is to be changed and not marked: {line}"
