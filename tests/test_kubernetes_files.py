"""Files for Kubernetes, Docker and SkyPilot: accepted by what reads them, and as raylm and constraints.txt expect.

Two tests need software that the test environment lacks; each is skipped unless its variable is set:

    KUBERAY_CRDS=kuberay/helm-chart/kuberay-operator/crds   # folder in a clone of github.com/ray-project/kuberay
    SKYPILOT_PYTHON=~/sky-venv/bin/python                   # Python of an environment with skypilot installed
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay import node_provider

import raylm
from raylm.tuning.resources import ray_autoscaler
from raylm.tuning.resources.autoscaler import GPU_MEMORY_RESOURCE, parse_config

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "clusters"
JOB, CLUSTER = CLUSTERS / "kuberay" / "rayjob.yaml", CLUSTERS / "kuberay" / "raycluster.yaml"
SKY, DOCKERFILE = CLUSTERS / "sky.yaml", CLUSTERS / "Dockerfile"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def read_manifests(path: Path) -> dict[str, dict[str, Any]]:
    """Return the objects of a file by kind and name, such as `RayCluster/raylm`."""
    objects = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in objects}


def read_spec(path: Path) -> dict[str, Any]:
    """Return the specification of the Ray cluster in a file."""
    objects = read_manifests(path)
    spec: dict[str, Any] = (
        objects["RayJob/raylm"]["spec"]["rayClusterSpec"] if path == JOB else objects["RayCluster/raylm"]["spec"]
    )
    return spec


class FakeKubernetes:
    """Stand-in for the API of Kubernetes: hands out RayClusters of the namespace `sweeps` to those with a token."""

    def __init__(self) -> None:
        self.clusters: dict[str, Any] = {}
        self.token = "pod-token"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the handler of its HTTPS server."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                folder, _, name = self.path.rpartition("/")
                status, content = 200, api.clusters.get(name)
                if self.headers["Authorization"] != f"Bearer {api.token}":
                    status = 403
                elif folder != "/apis/ray.io/v1/namespaces/sweeps/rayclusters" or content is None:
                    status = 404
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                """Keep the output of the tests free of requests."""

        return Handler


@pytest.fixture
def kubernetes_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """Make this process one of a pod of KubeRay's, with the files and variables that it has there."""
    key, certificate = tmp_path / "key", tmp_path / "ca.crt"
    options = shlex.split("-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1")
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *options, *names], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    api = FakeKubernetes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), api.handler())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "namespace").write_text("sweeps")
    (tmp_path / "token").write_text(api.token)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "raylm")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setattr(ray_autoscaler, "POD_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr(node_provider, "IN_CLUSTER_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(node_provider, "IN_CLUSTER_CA_CERT_PATH", str(certificate))
    host = f"https://127.0.0.1:{server.server_port}"  # Ray reads it from the variables when it is imported
    url = functools.partial(node_provider.url_from_resource, kubernetes_host=host)
    monkeypatch.setattr(node_provider, "url_from_resource", url)
    yield api
    server.shutdown()
    server.server_close()


def list_groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


# ---- KubeRay -------------------------------------------------------------------------------------------------------


def close_schema(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which Kubernetes would drop or reject."""
    if isinstance(schema, list):
        return [close_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {name: close_schema(value) for name, value in schema.items()}
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize(("path", "kind"), [(JOB, "RayJob"), (CLUSTER, "RayCluster")], ids=["rayjob", "raycluster"])
def test_schema_of_kuberay_accepts_the_manifest(path: Path, kind: str) -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("set KUBERAY_CRDS to the folder helm-chart/kuberay-operator/crds of a clone of ray-project/kuberay")
    text = (Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(found["schema"]["openAPIV3Schema"] for found in versions if found["name"] == "v1")
    validator = jsonschema.Draft7Validator(close_schema(schema["properties"]["spec"]))
    spec = read_manifests(path)[f"{kind}/raylm"]["spec"]
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(spec)]
    spec["workerGroupSpec"] = []
    assert not validator.is_valid(spec), "unknown fields must be refused"


def test_job_and_cluster_differ_in_the_job_only() -> None:
    job, staying = read_manifests(JOB), read_manifests(CLUSTER)
    assert read_spec(JOB) == read_spec(CLUSTER)
    assert {name: found for name, found in job.items() if name != "RayJob/raylm"} == {
        name: found for name, found in staying.items() if name != "RayCluster/raylm"
    }
    assert job["RayJob/raylm"]["apiVersion"] == staying["RayCluster/raylm"]["apiVersion"] == "ray.io/v1"
    run = job["RayJob/raylm"]["spec"]
    assert (ROOT / "sweeps" / Path(run["entrypoint"].split()[-1]).name).is_file(), "the example is one of sweeps/"
    assert run["entrypoint"].startswith("raylm run /sweeps/") and run["shutdownAfterJobFinishes"]


def test_raylm_reads_the_worker_groups_from_kubernetes(kubernetes_api: FakeKubernetes) -> None:
    """Read the RayCluster over HTTPS, as on the head's pod: no CPUs on the head, GPU workers from zero."""
    kubernetes_api.clusters["raylm"] = read_manifests(CLUSTER)["RayCluster/raylm"]
    config, problem = ray_autoscaler.read_autoscaler_config(gcs_port=0)
    assert config is not None and not problem
    head = config["available_node_types"][config["head_node_type"]]["resources"]
    assert head["CPU"] == head["GPU"] == 0, "trials request CPUs, so none runs there"
    autoscaler = parse_config(config)
    names = ("CPU", "GPU", GPU_MEMORY_RESOURCE)
    types = [(found.name, [found.resources[name] for name in names], found.max_count) for found in autoscaler.types]
    assert types == [("gpu-24gb", [4, 1, 22], 8), ("gpu-80gb", [4, 1, 79], 2)] and autoscaler.max_workers == 10

    kubernetes_api.clusters["raylm"]["spec"]["enableInTreeAutoscaling"] = False
    assert ray_autoscaler.read_autoscaler_config(gcs_port=0) == (None, ""), "its groups do not grow"
    del kubernetes_api.clusters["raylm"]
    config, problem = ray_autoscaler.read_autoscaler_config(gcs_port=0)
    assert config is None and "404" in problem
    kubernetes_api.token = "another"  # without an autoscaler, KubeRay creates no role for the head
    assert ray_autoscaler.read_autoscaler_config(gcs_port=0) == (None, "")


def test_operator_rules_that_the_schema_lacks_are_kept() -> None:
    """Check what KubeRay's operator refuses by code: restart policies, the token's version, resources given twice."""
    spec = read_spec(CLUSTER)
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token", "secretName": "raylm-token"}
    assert "RAY_AUTH_TOKEN" not in CLUSTER.read_text(encoding="utf-8"), "the token is in the Secret only"
    for group in list_groups(spec):
        assert group["template"]["spec"]["restartPolicy"] == "Never"
        assert "resources" not in group, "resources are in rayStartParams, and would be refused in both"
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_pods_have_few_rights_and_workers_tolerate_spot_nodes() -> None:
    spec = read_spec(CLUSTER)
    for group in list_groups(spec):
        pod, container = group["template"]["spec"], group["template"]["spec"]["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {found["name"] for found in container["env"]} >= {"RAYLM_STORAGE", "RAYLM_CACHE", "HF_HOME"}
        claimed = {mount["name"] for mount in container["volumeMounts"]}
        assert claimed == {volume["name"] for volume in pod["volumes"]}
        assert f"ServiceAccount/{pod['serviceAccountName']}" in read_manifests(CLUSTER)
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        keys = {found["key"] for found in pod["tolerations"]}
        assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= keys
        assert pod["automountServiceAccountToken"] is False
        stop = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        wait = int(re.findall(r"sleep (\d+)$", stop)[0])
        assert f"--deadline-remaining-seconds {wait} " in stop and wait < pod["terminationGracePeriodSeconds"]


# ---- the image -----------------------------------------------------------------------------------------------------


def test_versions_are_those_of_constraints_and_of_raylm() -> None:
    spec, dockerfile = read_spec(CLUSTER), DOCKERFILE.read_text(encoding="utf-8")
    assert spec["rayVersion"] == PINS["ray"]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in list_groups(spec)}
    assert images == {f"REGISTRY/raylm:{raylm.__version__}"}, "all Ray nodes run the same image"
    assert set(re.findall(r"raylm:([\d.]+\d)", dockerfile)) == {raylm.__version__}
    installs = re.findall(r"^RUN pip install (.*)$", dockerfile, re.MULTILINE)
    assert len(installs) == 3 and all("--constraint constraints.txt" in install for install in installs)
    assert "==" not in dockerfile, "constraints.txt has the versions"
    python = re.findall(r"^FROM python:([\d.]+)-slim", dockerfile, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [f">={version}" for version in python] == [project["requires-python"]]


def test_image_holds_what_it_needs_and_is_not_run_by_root() -> None:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    kept = (CLUSTERS / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == copied and "*" in kept
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000:1000"]
    assert "useradd --uid 1000" in "".join(lines)


# ---- SkyPilot ------------------------------------------------------------------------------------------------------


def test_sky_job_is_a_spot_job_that_resumes_from_the_bucket() -> None:
    job = yaml.safe_load(SKY.read_text(encoding="utf-8"))
    assert job["resources"]["use_spot"] and job["envs"]["RAYLM_STORAGE"].startswith("s3://")
    assert (ROOT / job["workdir"] / job["envs"]["SWEEP"]).is_file()
    assert "scripts/install" in job["setup"] and '\nraylm run "$SWEEP"' in job["run"]


def test_skypilot_accepts_the_file(tmp_path: Path) -> None:
    python = os.environ.get("SKYPILOT_PYTHON")
    if not python:
        pytest.skip("set SKYPILOT_PYTHON to the Python of an environment with skypilot installed")
    code = "import sky; task = sky.Task.from_yaml('clusters/sky.yaml'); print(all(r.use_spot for r in task.resources))"
    command = [str(Path(python).expanduser()), "-c", code]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")
