"""Cluster files: valid for Ray and Google, without secrets and open ports, with marked placeholders."""

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


def read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


# ---- schemas of Ray and Google -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ONPREM, GCP], ids=lambda path: path.name)
def test_schema_of_ray_accepts_the_file(path: Path) -> None:
    """Validate the files other than AWS's, which test_ray_up_aws.py passes to the launcher."""
    validate_config(prepare_config(read_config(path)))


def test_node_configs_of_google_match_the_schema_of_its_api() -> None:
    """Validate node_config, which Ray's schema does not describe, against Google's description of its API."""
    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]
    types: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}

    def check(value: Any, schema: dict[str, Any], path: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        type_name = schema["type"]
        assert isinstance(value, types[type_name]), f"{path}: expected type {type_name}"
        if type_name == "array":
            for number, item in enumerate(value):
                check(item, schema["items"], f"{path}[{number}]")
        elif type_name == "object":
            for name, item in value.items():
                field_schema = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
                assert field_schema, f"{path}.{name} is not a field of Google's API"
                check(item, field_schema, f"{path}.{name}")
        elif "enum" in schema:
            assert value in schema["enum"], f"{path}: {value}"

    for name, node_type in read_config(GCP)["available_node_types"].items():
        config = node_type["node_config"]
        for disk in config["disks"]:  # an int64, a string in the schema; Google accepts both
            disk["initializeParams"]["diskSizeGb"] = str(disk["initializeParams"]["diskSizeGb"])
        check(config, {"$ref": "Instance"}, name)
        if name != "head":
            assert config["scheduling"]["provisioningModel"] == "SPOT" and node_type.get("min_workers", 0) == 0
            assert [account["email"].split("@")[0] for account in config["serviceAccounts"]] == ["raylm-worker"]


# ---- all cluster files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_start_of_ray_requires_the_token(path: Path) -> None:
    config = read_config(path)
    head = " ".join(config["head_start_ray_commands"])
    worker = " ".join(config["worker_start_ray_commands"])
    for commands in (head, worker):
        assert re.search(r"RAY_AUTH_MODE=token( RAY_\w+=\d+)* ray start", commands)
    assert "--dashboard-host=127.0.0.1" in head and "--dashboard-host" not in worker
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("RAY_AUTH_MODE=token" in line and "~/.raylm_environment" in line for line in config["setup_commands"])


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_mounted_files_are_those_needed_to_install(path: Path) -> None:
    mounts = read_config(path)["file_mounts"]
    assert mounts == read_config(AWS)["file_mounts"]
    code = {remote: local for remote, local in mounts.items() if remote != "~/.ray/auth_token"}
    assert {remote.removeprefix("~/raylm/") for remote in code} == set(code.values())
    assert all((ROOT / local).exists() for local in code.values())
    project = (ROOT / "pyproject.toml").read_text()
    build_files = re.findall(r'^(?:readme|license-files) = \[?"(.+?)"', project, re.MULTILINE)
    assert set(build_files) <= set(code.values())


SECRET = re.compile(
    r"AKIA\w{16}|-----BEGIN|\b[0-9a-f]{40,}\b|\bhf_\w{20}|(?i:secret|password|api_key|access_key)\w*\s*[:=]"
)


@pytest.mark.parametrize("path", [*YAMLS, *sorted((ROOT / "clusters" / "aws").iterdir())], ids=lambda path: path.name)
def test_file_has_no_secret_and_grants_no_unrestricted_access(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SECRET.search(text)
    assert "FullAccess" not in text and "0.0.0.0" not in text and "::/0" not in text


PLACEHOLDERS = re.compile(
    r"\b(ami-0{16}\d|sg-0{17}|BUCKET|PROJECT|192\.0\.2\.\d+|us-(?:west|central)[\w-]*|MaxPrice)\b"
)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_placeholder_is_marked_and_explained(path: Path) -> None:
    """Expect a comment that begins with CHANGE and explains the value above each placeholder."""
    lines = path.read_text(encoding="utf-8").splitlines()
    marked: set[int] = set()
    for number, line in enumerate(lines):
        if "CHANGE" in line and number > 3:
            assert re.match(r"\s*# CHANGE: \w+", line), line
            setting = next(index for index in range(number, len(lines)) if not lines[index].lstrip().startswith("#"))
            end = setting + 1
            while end < len(lines) and indentation(lines[end]) > indentation(lines[setting]):
                end += 1
            marked |= set(range(setting, end))
            comment = " ".join(lines[number:setting])
            assert len(comment.split()) > 3, f"line {number + 1} does not explain the value"
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("#") and PLACEHOLDERS.search(line.split(" # ")[0]):
            assert number in marked, f"line {number + 1} has a placeholder without a CHANGE comment: {line}"


def indentation(line: str) -> int:
    """Return the number of spaces at the beginning of a line."""
    return len(line) - len(line.lstrip())
