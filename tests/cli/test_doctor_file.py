"""Checks of `raylm doctor CLUSTER.YAML`: what is left to change in a file, and on the machine that starts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylm.cli import cloud
from raylm.cli.app import app
from raylm.cli.cluster_file import PLACEHOLDER

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "cluster.yaml",
    "clusters/gcp.yaml",
    "clusters/onprem.yaml",
    "clusters/sky.yaml",
    "clusters/kuberay/rayjob.yaml",
    "clusters/kuberay/raycluster.yaml",
    "clusters/slurm/raylm.sbatch",
]
REAL_VALUES = {"BUCKET": "my-results", "PROJECT": "my-project", "REGISTRY": "ghcr.io/me", "ACCOUNT": "123456789012"}
MISTAKES = """\
cluster_name: raylm
max_worker: 8
provider: {type: aws, region: us-wst-2}
available_node_types:
  head:
    resources: {CPU: 0}
    node_config: {InstanceType: m7i.large}
    max_wokers: 2
  gpu:
    resources: {CPU: four}
    node_config: {InstanceType: g6.xlarge}
head_node_type: head
head_node_type: head
file_mounts: {a: b}
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home of a user who has all that the cluster files need; the working folder is the repository."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "AWS_PROFILE", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / ".ssh" / "raylm"))
    for folder, file in ((".ray", "auth_token"), (".ssh", "raylm")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("0" * 64)
        (tmp_path / folder / file).chmod(0o600)
    monkeypatch.chdir(ROOT)
    return tmp_path


def doctor(path: Path | str, *options: str) -> tuple[int, str]:
    """Return exit code and output of `raylm doctor`."""
    result = CliRunner().invoke(app, ["doctor", str(path), *options])
    return result.exit_code, result.output


def fill_in(text: str) -> str:
    """Return a file with real values in place of its placeholders."""
    text = re.sub(r"\b(ami|sg|subnet)-0{16}(\d)", r"\1-0abcdef012345678\2", text)
    return PLACEHOLDER.sub(lambda found: REAL_VALUES.get(found[0], "10.0.0.5"), text)


def uncommented(text: str) -> dict[int, str]:
    """Return the lines of a file with a placeholder outside of comments, by number from 1."""
    lines = enumerate((line.split(" # ")[0] for line in text.splitlines()), 1)
    return {number: line for number, line in lines if PLACEHOLDER.search(line) and not line.lstrip().startswith("#")}


@pytest.mark.parametrize("name", FILES)
def test_every_placeholder_is_told_with_its_line_and_meaning(launcher: Path, name: str) -> None:
    left = uncommented((ROOT / name).read_text(encoding="utf-8"))
    code, output = doctor(name)
    told = {int(number) for number in re.findall(rf"^!!  {name}:(\d+)  ", output, re.MULTILINE)}
    assert told == set(left)
    assert code == (2 if left else 0)
    assert output.count("is a placeholder: ") == len(left)
    marked = sum("CHANGE: " in line for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    assert len(re.findall(rf"^..  {name}:\d+  ", output, re.MULTILINE)) >= marked, "each CHANGE line is listed"


@pytest.mark.parametrize("name", FILES)
def test_file_without_placeholders_needs_no_change(launcher: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / Path(name).name
    path.write_text(fill_in((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    code, output = doctor(path)
    assert code == 0 and "!!" not in output, output
    command = {"clusters/sky.yaml": "sky jobs launch", "clusters/slurm/raylm.sbatch": "sbatch"}.get(name, "")
    command = command or ("kubectl apply -f" if "kuberay" in name else "ray up -y")
    assert f"nothing to change: {command} {path}" in output


def test_mistakes_are_told_with_their_lines(launcher: Path, tmp_path: Path) -> None:
    path = tmp_path / "mistakes.yaml"
    path.write_text(MISTAKES)
    code, output = doctor(path)
    assert code == 2 and "quotas" not in output
    for message in (
        f"{path}:2  max_worker: refused by Ray\n    Ray knows no such key here; did you mean 'max_workers'?",
        f"{path}:8  available_node_types.head.max_wokers: refused by Ray",
        f"{path}:10  available_node_types.gpu.resources.CPU: refused by Ray\n    'four' is not of type 'integer'",
        f"{path}:13  head_node_type: given twice",
        f"{path}:14  file_mounts: b does not exist",
        "AWS region: us-wst-2\n    EC2 has no such region; expected one such as us-west-2; did you mean 'us-west-2'?",
        "RAYLM_STORAGE: not set",
    ):
        assert message in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster_name: x\nprovider: {type: aws\nfoo: [\n", ":3: not valid YAML: expected ',' or '}'"),
        ("a: 1\n", " does not describe a cluster; expected a file for `ray up`"),
        (
            "cluster_name: x\nprovider: {type: awss}\n",
            ":2  provider.type: refused by Ray\n    Unsupported node provider",
        ),
        ("- a\n- b\n", " does not describe a cluster"),
        ("cluster_name: 2026-02-31\n", ": not valid YAML: day is out of range for month"),
        ("cluster_name: &a [*a]\nprovider: {type: aws}\n", ": not valid YAML: Circular reference detected"),
        ("cluster_name: x\nprovider:\n", ":2  provider: refused by Ray\n    None is not of type 'object'"),
    ],
)
def test_what_is_no_cluster_file_is_told(launcher: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    code, output = doctor(path)
    assert code == 2 and f"{path}{message}" in output.replace("raylm: ", "")


def test_what_the_machine_lacks_is_told(launcher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (launcher / ".ray" / "auth_token").unlink()
    (launcher / ".ssh" / "raylm").unlink()
    monkeypatch.setattr(cloud, "GOOGLE_PRODUCT_FILE", launcher / "none")
    aws, google, own = (doctor(name)[1] for name in FILES[:3])
    assert "AWS credentials: boto3 finds none\n    run `aws configure`" in aws
    assert "auth_token does not exist\n    create the token of the cluster: `ray get-auth-token --generate`" in aws
    assert "application_default_credentials.json does not exist\n    run `gcloud auth" in google
    assert "ssh_private_key: ~/.ssh/raylm does not exist\n    create it with `ssh-keygen" in own
    monkeypatch.setitem(cloud.PACKAGES, "aws", ({"not_boto3": "boto3"}, "pip install boto3"))
    assert "provider aws: boto3 not installed\n    pip install boto3" in doctor("cluster.yaml")[1]


def test_quotas_are_named_with_what_all_workers_take(launcher: Path) -> None:
    aws, google = (doctor(name)[1] for name in FILES[:2])
    assert "All G and VT Spot Instance Requests in us-west-2: 32 vCPUs (up to 8 g6.xlarge, 4 g6e.xlarge)" in aws
    assert "All P5 Spot Instance Requests in us-west-2: 32 vCPUs (up to 2 p5.4xlarge)" in aws
    assert "Preemptible NVIDIA L4 GPUs in us-central1: 8 GPUs (up to 8 g2-standard-8)" in google
    assert "Preemptible NVIDIA A100 80GB GPUs in us-central1: 2 GPUs" in google


def test_cluster_file_is_checked_without_its_cluster(launcher: Path) -> None:
    code, output = doctor("cluster.yaml", "--address", "local")
    assert code == 2 and "leave out --address and --storage" in output
