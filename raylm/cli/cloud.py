"""Accounts of clouds as `ray up` needs them on the machine that starts a cluster: packages, credentials, quotas."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raylm.cli.check_result import CheckResult
from raylm.errors import format_suggestion, one_line

PACKAGES = {
    "aws": ({"boto3": "boto3"}, "pip install boto3"),
    "gcp": (
        {"googleapiclient": "google-api-python-client", "google.auth": "google-auth"},
        "pip install google-api-python-client",
    ),
    "azure": (
        {"azure.identity": "azure-identity", "azure.mgmt.compute": "azure-mgmt-compute"},
        "pip install azure-cli-core azure-identity azure-mgmt-compute azure-mgmt-network azure-mgmt-resource",
    ),
}
"""Modules that Ray imports for each provider, with their packages, and the command that installs them."""
AWS_QUOTAS = (
    (r"(g|gr|vt)\d", "All G and VT Spot Instance Requests", "Running On-Demand G and VT instances"),
    (r"p[234]", "All P4, P3 and P2 Spot Instance Requests", "Running On-Demand P instances"),
    (r"p5", "All P5 Spot Instance Requests", "Running On-Demand P instances"),
)
"""Patterns of EC2's instance types, with their quotas of spot and of other machines, in vCPUs (Service Quotas, EC2)."""
GCP_GPUS = (
    ("g2-", "L4"),
    ("g4-", "RTX PRO 6000"),
    ("a2-ultragpu", "A100 80GB"),
    ("a2-", "A100"),
    ("a3-ultragpu", "H200"),
    ("a3-", "H100"),
)
"""Prefixes of Google Cloud's machine types with the GPU in the name of their quota."""
GOOGLE_PRODUCT_FILE = Path("/sys/class/dmi/id/product_name")


def check_account(provider: str, config: Mapping[str, Any]) -> Iterator[CheckResult]:
    """Yield whether this machine has a provider's packages and credentials, without asking the provider.

    Args:
        provider: `provider.type` of the cluster file.
        config: `provider` of the cluster file.
    """
    modules, command = PACKAGES.get(provider, ({}, ""))
    missing = [package for module, package in modules.items() if not _is_installed(module)]
    if missing:
        yield CheckResult("here", f"provider {provider}", f"{', '.join(missing)} not installed", command)
        return
    if modules:
        yield CheckResult("here", f"provider {provider}", f"{', '.join(modules.values())} installed")
    if provider == "aws":
        yield from _check_aws(config)
    elif provider == "gcp":
        yield _check_google(config)


def _is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _check_aws(config: Mapping[str, Any]) -> Iterator[CheckResult]:
    """Yield whether boto3 finds credentials and knows the region."""
    import boto3
    from botocore.exceptions import BotoCoreError

    advice = "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    region = str(config.get("region", ""))
    try:
        session = boto3.Session()
        credentials = config.get("aws_credentials") or session.get_credentials()
        regions = [
            name for part in session.get_available_partitions() for name in session.get_available_regions("ec2", part)
        ]
    except BotoCoreError as error:  # as a profile that does not exist
        yield CheckResult(
            "here", "AWS credentials", one_line(error), f"correct AWS_PROFILE or ~/.aws/config; or {advice}"
        )
        return
    if credentials:
        found = getattr(credentials, "method", "in the file")
        yield CheckResult("here", "AWS credentials", f"found ({found}); not tried")
    else:
        yield CheckResult("here", "AWS credentials", "boto3 finds none", advice)
    if region not in regions:
        hint = format_suggestion(region, regions)
        advice = f"EC2 has no such region; expected one such as us-west-2{hint}"
        yield CheckResult("here", "AWS region", region or "not set", advice)


def _check_google(config: Mapping[str, Any]) -> CheckResult:
    """Return whether this machine has Google's application default credentials."""
    folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    own = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    file = Path(own or os.path.expanduser(f"{folder}/application_default_credentials.json"))  # noqa: PTH111 (no home)
    if config.get("gcp_credentials"):
        return CheckResult("here", "Google credentials", "in the file; not tried")
    if file.is_file():
        return CheckResult("here", "Google credentials", f"{file}; not tried")
    if not own and GOOGLE_PRODUCT_FILE.is_file() and "Google" in GOOGLE_PRODUCT_FILE.read_text(errors="replace"):
        return CheckResult("here", "Google credentials", "those of this machine's service account; not tried")
    return CheckResult(
        "here", "Google credentials", f"{file} does not exist", "run `gcloud auth application-default login`"
    )


# ---- quotas -------------------------------------------------------------------------------------------------------


def describe_quotas(config: Mapping[str, Any]) -> list[str]:
    """Return the quotas that all workers of a cluster file take together, one line each.

    Args:
        config: content of a file for `ray up` that Ray's schema accepts.
    """
    provider, types = config["provider"]["type"], config.get("available_node_types", {})
    find_quota = {"aws": _find_aws_quota, "gcp": _find_google_quota}.get(provider)
    if find_quota is None:
        return []
    limit = int(config.get("max_workers", 2))
    amounts: dict[str, list[int]] = defaultdict(list)
    machines: dict[str, list[str]] = defaultdict(list)
    for name, node_type in types.items():
        number = min(int(node_type.get("max_workers", limit)), limit)
        if name == config.get("head_node_type") or number == 0:
            continue
        quota, machine, amount = find_quota(node_type)
        if quota:
            amounts[quota] += [amount] * number
            machines[quota].append(f"{number} {machine}")
    unit = "vCPUs" if provider == "aws" else "GPUs"
    place = f" in {config['provider']['region']}" if "region" in config["provider"] else ""
    return [
        f"{quota}{place}: {sum(sorted(found, reverse=True)[:limit])} {unit} (up to {', '.join(machines[quota])})"
        for quota, found in amounts.items()
    ]


def _find_aws_quota(node_type: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return the quota of a node type, its machine type, and a machine's vCPUs; an empty quota for one without GPUs."""
    config = node_type["node_config"]
    machine, is_spot = str(config.get("InstanceType", "")), "InstanceMarketOptions" in config
    quotas = [(spot, other) for pattern, spot, other in AWS_QUOTAS if re.match(pattern, machine)]
    return (quotas[0][0 if is_spot else 1] if quotas else ""), machine, int(node_type["resources"].get("CPU", 0))


def _find_google_quota(node_type: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return the quota of a node type, its machine type, and a machine's GPUs; an empty quota for one without GPUs."""
    config = node_type["node_config"]
    machine = str(config.get("machineType", "")).rpartition("/")[2]
    scheduling = config.get("scheduling") or {}
    is_spot = scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible")
    attached = [str(found.get("acceleratorType", "")) for found in config.get("guestAccelerators") or ()]
    names = [name for prefix, name in GCP_GPUS if machine.startswith(prefix)]
    names += [name.rpartition("nvidia-")[2].removeprefix("tesla-").upper() for name in attached]
    quota = f"{'Preemptible ' if is_spot else ''}NVIDIA {names[0]} GPUs" if names else ""
    return quota, machine, int(node_type["resources"].get("GPU", 1))
