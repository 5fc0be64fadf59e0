"""cluster.yaml launched by Ray's own launcher into an AWS account that moto simulates, without network and SSH."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import moto
import pytest
import yaml
from botocore.exceptions import ClientError
from moto.core.authorization import enable_iam_authentication
from moto.ssm.models import Parameter, ssm_backends
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "cluster.yaml"
POLICIES = sorted((ROOT / "clusters" / "aws").glob("*.json"))
REGION = "us-west-2"
HOME_NETWORK = "203.0.113.7/32"
NODE_TYPES = yaml.safe_load(AWS.read_text(encoding="utf-8"))["available_node_types"]
WORKERS = {"gpu_24gb": "g6.xlarge", "gpu_48gb": "g6e.xlarge", "gpu_80gb": "p5.4xlarge"}


# ---- an AWS account, and a cluster launched into it ----------------------------------------------------------------


def _account() -> ModuleType:
    """clusters/aws/account.py as a module."""
    spec = importlib.util.spec_from_file_location("account", ROOT / "clusters" / "aws" / "account.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


account = _account()
ACCOUNT = ["--region", REGION, "--bucket", "results-of-alice", "--ssh-from", HOME_NETWORK]


@contextlib.contextmanager
def empty_account(home: Path) -> Iterator[pytest.MonkeyPatch]:
    """An empty AWS account, with the public images of a region, and an empty home of the launching user."""
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name, value in {"HOME": home, "TMPDIR": home, "AWS_DEFAULT_REGION": REGION}.items():
            patch.setenv(name, str(value))
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):  # moto would be passed by
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.chdir(ROOT)  # file_mounts are relative to where `ray up` is called
        become(patch, "testing", "testing")
        _publish_images()
        yield patch
    _forget_clients()


def become(patch: pytest.MonkeyPatch, key: str, secret: str, session: str = "") -> None:
    """From here on, AWS is asked with these credentials."""
    patch.setenv("AWS_ACCESS_KEY_ID", key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_SESSION_TOKEN", session)
    _forget_clients()


def become_machine(patch: pytest.MonkeyPatch, role: str) -> None:
    """From here on, AWS is asked as by a machine with this role."""
    become(patch, "testing", "testing")
    arn = f"arn:aws:iam::123456789012:role/{role}"
    given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="machine")["Credentials"]
    become(patch, given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])


def _forget_clients() -> None:
    boto3.setup_default_session()
    aws_utils.resource_cache.cache_clear()
    aws_utils.client_cache.cache_clear()


def _publish_images() -> None:
    """Public parameters of AWS, which moto lets nobody write through the API."""
    known = [image["ImageId"] for image in boto3.client("ec2").describe_images()["Images"]]
    store = ssm_backends["123456789012"][REGION]._parameters
    for name, image in zip(account.IMAGES.values(), sorted(known), strict=False):
        plain = {"description": "", "allowed_pattern": None, "keyid": None, "last_modified_date": 0, "version": 1}
        kind = {"parameter_type": "String", "data_type": "aws:ec2:image"}
        store[name].append(Parameter(account_id="123456789012", name=name, value=image, **plain, **kind))


def filled_in(printed: str) -> str:
    """cluster.yaml with what account.py printed in its CHANGE lines."""
    head, workers = re.findall(r"ImageId: (ami-\w+)", printed)
    (group,) = re.findall(r"SecurityGroupIds: &group (\[sg-\w+\])", printed)
    text = AWS.read_text(encoding="utf-8")
    for placeholder, value in {
        "ami-00000000000000000": head,
        "ami-00000000000000001": workers,
        "[sg-00000000000000000]": group,
        "s3://BUCKET/raylm": "s3://results-of-alice/raylm",
    }.items():
        assert text.count(placeholder) == 1 and value in printed
        text = text.replace(placeholder, value)
    return text


def actions_alone(name: str) -> str:
    """A policy as moto can enforce it: it compares neither resources nor conditions of EC2's actions."""
    kept = [
        {key: one[key] for key in ("Effect", "Action")} | {"Resource": "*"} for one in statements(policy_file(name))
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": kept})


@dataclass
class Recorder:
    """Stands where the launcher has the `subprocess` module: notes the ssh and rsync commands, and runs none."""

    DEVNULL: None = None
    commands: list[str] = field(default_factory=list)

    def check_call(self, command: list[str], **_: Any) -> int:
        self.commands.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        self.commands.append(" ".join(command))
        return b""


@dataclass
class Launched:
    """What was asked of EC2 and what it had then: after `ray up`, and after trials asked for a worker of each type."""

    commands: list[str]
    """SSH and rsync of `ray up`."""
    requests: list[dict[str, Any]]
    """The parameters of each RunInstances, the head's first."""
    instances: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    instance_types: dict[str, dict[str, Any]]
    after_down: set[str]
    """The states of the instances after `ray down`."""

    @property
    def head(self) -> dict[str, Any]:
        (head,) = [one for one in self.instances if one["tags"]["ray-node-type"] == "head"]
        return head

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        workers = [one for one in self.instances if one["tags"]["ray-node-type"] == "worker"]
        return {one["tags"]["ray-user-node-type"]: one for one in workers}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The cluster of cluster.yaml, launched with the rights of raylm-launcher and grown with those of raylm-head."""
    home = tmp_path_factory.mktemp("home")
    path = home / "cluster.yaml"
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with empty_account(home) as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        account.main(ACCOUNT)
        path.write_text(filled_in(printed.getvalue()))
        iam = boto3.client("iam")
        iam.create_user(UserName="alice")
        iam.put_user_policy(UserName="alice", PolicyName="launcher", PolicyDocument=actions_alone("launcher"))
        iam.put_role_policy(RoleName="raylm-head", PolicyName="head", PolicyDocument=actions_alone("head"))
        key = iam.create_access_key(UserName="alice")["AccessKey"]

        requests: list[dict[str, Any]] = []
        recorder = Recorder()
        become(patch, key["AccessKeyId"], key["SecretAccessKey"])
        with enable_iam_authentication():
            config = commands._bootstrap_config(yaml.safe_load(path.read_text()), no_config_cache=True)
            provider = _recorded(config, requests)
            commands.get_or_create_head_node(
                config,
                str(path),
                no_restart=False,
                restart_only=False,
                yes=True,
                override_cluster_name=None,
                _provider=provider,
                _runner=recorder,
            )
        become_machine(patch, "raylm-head")
        with enable_iam_authentication():
            _start_one_of_each(config, _recorded(config, requests))
        become(patch, "testing", "testing")
        ec2 = boto3.client("ec2")
        found = _instances()
        groups = ec2.describe_security_groups()["SecurityGroups"]
        types = ec2.describe_instance_types(InstanceTypes=list(WORKERS.values()))["InstanceTypes"]
        become(patch, key["AccessKeyId"], key["SecretAccessKey"])
        with enable_iam_authentication():  # what `ray down` does
            provider = _recorded(config, [])
            provider.terminate_nodes(provider.non_terminated_nodes({}))
        become(patch, "testing", "testing")
        states = {one["State"]["Name"] for one in _instances()}
    return Launched(recorder.commands, requests, found, groups, {one["InstanceType"]: one for one in types}, states)


def _recorded(config: dict[str, Any], requests: list[dict[str, Any]]) -> Any:
    """Ray's hand on EC2, with what it asks to be started noted."""
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register("provide-client-params.ec2.RunInstances", lambda params, **_: requests.append(params))
    return provider


def _start_one_of_each(config: dict[str, Any], provider: Any) -> None:
    """What the head's autoscaler does when trials ask for each type of worker."""
    on_head = {key: value for key, value in config.items() if key != "head_node"}  # as it is sent there

    class Reader:
        scaling = AutoscalingConfig(on_head, skip_content_hash=True)

        def get_cached_autoscaling_config(self) -> Any:
            return self.scaling

    adapter = NodeProviderAdapter(provider, Reader())
    for name, kind in Reader.scaling.get_node_type_configs().items():
        assert kind.min_worker_nodes == 0, "nothing is to run while nobody asks for it"
        if name in WORKERS:
            adapter._launch_nodes_by_type(name, 1, "request")
    assert not adapter.poll_errors()


def _instances() -> list[dict[str, Any]]:
    found = [one for each in boto3.client("ec2").describe_instances()["Reservations"] for one in each["Instances"]]
    return [{**one, "tags": {tag["Key"]: tag["Value"] for tag in one["Tags"]}} for one in found]


# ---- AWS: what comes up -------------------------------------------------------------------------------------------


def test_head_is_small_on_demand_and_runs_no_trials(launched: Launched) -> None:
    assert launched.head["InstanceType"] == "m7i.large" and launched.head.get("InstanceLifecycle") != "spot"
    assert NODE_TYPES["head"]["resources"] == {"CPU": 0}


def test_workers_have_the_right_types_and_are_spot(launched: Launched) -> None:
    assert {name: one["InstanceType"] for name, one in launched.workers.items()} == WORKERS
    assert {one["InstanceLifecycle"] for one in launched.workers.values()} == {"spot"}
    options = [request["InstanceMarketOptions"]["SpotOptions"] for request in launched.requests[1:]]
    assert [0 < float(one["MaxPrice"]) < 10 for one in options] == [True] * 3


def test_every_machine_has_tags_profile_group_imdsv2_and_an_encrypted_disk(launched: Launched) -> None:
    (group,) = [one["GroupId"] for one in launched.groups if one["GroupName"] == "raylm"]
    assert len(launched.instances) == len(launched.requests) == 4
    for one in launched.instances:
        assert one["tags"]["ray-cluster-name"] == one["tags"]["project"] == "raylm"
        profile = "raylm-head" if one is launched.head else "raylm-worker"
        assert one["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{profile}")
        assert [one["GroupId"] for one in one["SecurityGroups"]] == [group]
    for request in launched.requests:
        assert request["MetadataOptions"]["HttpTokens"] == "required"
        assert {spec["ResourceType"] for spec in request["TagSpecifications"]} == {"instance", "volume"}
        (disk,) = request["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"] and disk["Ebs"]["VolumeType"] == "gp3"


def test_only_the_own_network_and_the_group_have_access(launched: Launched) -> None:
    groups = {one["GroupName"]: one for one in launched.groups}
    assert set(groups) == {"default", "raylm"}, "Ray has made a group of its own, which is open to everybody"
    rules = {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")): (
            [one["CidrIp"] for one in rule["IpRanges"]],
            [one["GroupId"] for one in rule["UserIdGroupPairs"]],
        )
        for rule in groups["raylm"]["IpPermissions"]
    }
    own = groups["raylm"]["GroupId"]
    assert rules == {("tcp", 22, 22): ([HOME_NETWORK], []), ("-1", None, None): ([], [own])}


def test_ray_starts_with_the_token_and_a_dashboard_for_the_head_alone(launched: Launched) -> None:
    (start,) = [one for one in launched.commands if "ray start --head" in one]
    assert "RAY_AUTH_MODE=token" in start and "--dashboard-host=127.0.0.1" in start
    (copied,) = [one for one in launched.commands if one.startswith("rsync") and "auth_token" in one]
    assert copied.split()[-1].endswith(":~/.ray/auth_token")
    all_of_it = "\n".join(launched.commands)
    assert all_of_it.index("chmod 600 ~/.ray/auth_token") < all_of_it.index("ray start --head")
    assert "~/raylm/scripts/install" in all_of_it and "'.[aws]'" in all_of_it.replace("'\"'\"'", "'")


def test_gpu_memory_is_that_of_ec2(launched: Launched) -> None:
    for name, kind in WORKERS.items():
        described = launched.instance_types[kind]
        (card,) = described["GpuInfo"]["Gpus"]
        resources = NODE_TYPES[name]["resources"]
        gib = card["MemoryInfo"]["SizeInMiB"] / 1024
        assert resources["GPU"] == card["Count"] == 1 and gib - 2 < resources["gpu_gib"] <= gib
        assert resources["CPU"] == described["VCpuInfo"]["DefaultVCpus"]


def test_nothing_is_left_after_ray_down(launched: Launched) -> None:
    assert launched.after_down == {"terminated"}


# ---- AWS: who may do what -----------------------------------------------------------------------------------------


def policy_file(name: str) -> Path:
    return ROOT / "clusters" / "aws" / f"{name}-policy.json"


def statements(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["Statement"]
    return found


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_worker_can_access_the_bucket_and_no_machine(tmp_path: Path) -> None:
    with empty_account(tmp_path) as patch, contextlib.redirect_stdout(io.StringIO()):
        account.main(ACCOUNT)
        become_machine(patch, "raylm-worker")
        s3, ec2, iam = (boto3.client(name) for name in ("s3", "ec2", "iam"))
        with enable_iam_authentication():
            s3.put_object(Bucket="results-of-alice", Key="raylm/probe", Body=b"written")
            assert s3.get_object(Bucket="results-of-alice", Key="raylm/probe")["Body"].read() == b"written"
            s3.delete_object(Bucket="results-of-alice", Key="raylm/probe")
            refused: list[Callable[[], Any]] = [
                lambda: s3.put_object(Bucket="results-of-alice", Key="elsewhere/probe", Body=b""),
                lambda: s3.delete_bucket(Bucket="results-of-alice"),
                lambda: ec2.describe_instances(),
                lambda: ec2.run_instances(ImageId="ami-1", MinCount=1, MaxCount=1),
                lambda: iam.list_roles(),
            ]
            for call in refused:
                with pytest.raises(ClientError, match=r"AccessDenied|UnauthorizedOperation"):
                    call()


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_policy_grants_no_more_than_needed(path: Path) -> None:
    for statement in statements(path):
        actions = as_list(statement["Action"])
        assert not any("*" in action for action in actions), statement["Sid"]
        if as_list(statement.get("Resource", [])) == ["*"]:  # seeing is all that AWS cannot narrow down
            assert all(action.startswith("ec2:Describe") for action in actions), statement["Sid"]
        if set(actions) & {"ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"}:
            assert statement["Condition"], statement["Sid"]


def test_started_machines_meet_the_conditions_of_the_policies(launched: Launched) -> None:
    """RunInstances as recorded, held against the policies: cluster's tag, type, IMDSv2, the one profile."""
    for number, request in enumerate(launched.requests):
        (start,) = [
            one
            for one in statements(policy_file("head" if number else "launcher"))
            if one["Action"] == "ec2:RunInstances" and "instance/" in one["Resource"]
        ]
        (tags,) = [spec["Tags"] for spec in request["TagSpecifications"] if spec["ResourceType"] == "instance"]
        given = {
            **{f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in tags},
            "ec2:InstanceType": request["InstanceType"],
            "ec2:MetadataHttpTokens": request["MetadataOptions"]["HttpTokens"],
            "ec2:InstanceProfile": f"arn:aws:iam::1:instance-profile/{request['IamInstanceProfile']['Name']}",
        }
        conditions = {key: value for test in start["Condition"].values() for key, value in test.items()}
        assert set(conditions) == {key for key in given if "RequestTag" not in key} | {
            "aws:RequestTag/ray-cluster-name"
        }
        for key, patterns in conditions.items():
            assert any(fnmatch.fnmatchcase(given[key], pattern) for pattern in as_list(patterns)), key


@pytest.mark.parametrize(("name", "role"), [("head", "raylm-worker"), ("launcher", "raylm-head")])
def test_other_machines_are_not_accessible(name: str, role: str) -> None:
    by_action = {action: one for one in statements(policy_file(name)) for action in as_list(one["Action"])}
    ours = {"StringLike": {"aws:ResourceTag/ray-cluster-name": "raylm*"}}
    assert by_action["ec2:TerminateInstances"]["Condition"] == ours
    assert by_action["iam:PassRole"]["Resource"] == f"arn:aws:iam::*:role/{role}"
    for one in statements(policy_file(name)):
        if one["Action"] == "ec2:CreateTags" and "StringLike" in one["Condition"]:
            assert one["Condition"]["StringLike"] == ours["StringLike"]


def test_account_is_set_up_once_and_can_be_removed(tmp_path: Path) -> None:
    with empty_account(tmp_path):
        answers = []
        for _ in range(2):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                account.main(ACCOUNT)
            answers.append(printed.getvalue())
        assert answers[0] == answers[1]
        s3, iam, ec2 = (boto3.client(name) for name in ("s3", "iam", "ec2"))
        closed = s3.get_public_access_block(Bucket="results-of-alice")["PublicAccessBlockConfiguration"]
        assert list(closed.values()) == [True] * 4
        policies = {role: sorted(iam.list_role_policies(RoleName=role)["PolicyNames"]) for role in account.ROLES}
        assert policies == {"raylm-head": ["head", "storage"], "raylm-worker": ["storage"]}
        assert not any(iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] for role in account.ROLES)

        account.main(["--region", REGION, "--remove"])
        assert not {role["RoleName"] for role in iam.list_roles()["Roles"]} & set(account.ROLES)
        assert [one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]] == ["default"]
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["results-of-alice"]


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/8", "home", "203.0.113.7/24"])
def test_ssh_is_not_opened_to_the_world(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        account.main(["--region", REGION, "--bucket", "b", "--ssh-from", network])
    assert "--ssh-from" in capsys.readouterr().err
