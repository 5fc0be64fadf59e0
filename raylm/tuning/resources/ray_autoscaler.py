"""Ray's private interfaces to its autoscaler: another version of Ray may change these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private.state import state

POD_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File in which Kubernetes tells a pod its namespace."""


def reported_node_types() -> list[tuple[str, dict[str, float], int]]:
    """Return name, resources and maximum number of each node type in the cluster's state; -1: no maximum.

    Anyscale's autoscaler and Ray's own after 2.60 report them; that of 2.60 does not.
    """
    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [(group.name, {name: float(n) for name, n in group.resources.items()}, group.max_count) for group in groups]


def read_autoscaler_config(gcs_port: int) -> tuple[dict[str, Any] | None, str]:
    """Return the configuration of the autoscaler of the cluster whose head this machine is, as in files for `ray up`.

    Args:
        gcs_port: port of the cluster's GCS.

    Returns:
        The configuration, or None if there is no autoscaler; and the reason if there is one that cannot be read.
    """
    try:
        if path := _find_autoscaler_file(gcs_port):
            return yaml.safe_load(path.read_text(encoding="utf-8")), ""
        return _read_kuberay_config(), ""
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:  # requests' errors are OSErrors
        return None, f"{type(error).__name__}: {error}"


def _find_autoscaler_file(gcs_port: int) -> Path | None:
    """Return the file that `ray start --head --autoscaling-config` was given, from the autoscaler's command line."""
    for process in psutil.process_iter(["cmdline"]):
        options = dict(argument.partition("=")[::2] for argument in process.info["cmdline"] or [])
        path, address = options.get("--autoscaling-config"), options.get("--gcs-address", "")
        if path and address.endswith(f":{gcs_port}"):
            return Path(path).expanduser()
    return None


def _read_kuberay_config() -> dict[str, Any] | None:
    """Return the worker groups of the RayCluster that this pod is the head of, as Ray's autoscaler reads them.

    Returns:
        None if this is no pod of KubeRay's, or its service account may not read the RayCluster: it may if there is an
        autoscaler, which is a container of the same pod.
    """
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ or not POD_NAMESPACE_FILE.is_file():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider  # slow

    client = node_provider.KubernetesHttpApiClient(POD_NAMESPACE_FILE.read_text(encoding="utf-8").strip())
    try:
        spec = client.get(f"rayclusters/{name}")["spec"]
    except autoscaling_config.requests.HTTPError as error:
        if error.response.status_code in (401, 403):
            return None
        raise
    if not spec.get("enableInTreeAutoscaling"):
        return None
    types = autoscaling_config._generate_available_node_types_from_ray_cr_spec(spec)
    return {"available_node_types": types, "head_node_type": autoscaling_config._HEAD_GROUP_NAME}
