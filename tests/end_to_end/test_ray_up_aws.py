"""cluster.yaml launched by Ray's own launcher into an AWS account that moto simulates, without network and SSH."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
import yaml
from aws_account import (
    BUCKET,
    ROOT,
    USER_NETWORK,
    policy_path,
    read_enforceable_policy,
    read_statements,
    set_up_account,
    simulate_account,
    to_list,
    use_admin_credentials,
    use_credentials,
    use_role_credentials,
)
from moto.core.authorization import enable_iam_authentication
from ray.autoscaler._private import commands
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

CLUSTER_FILE = ROOT / "cluster.yaml"
NODE_TYPES = yaml.safe_load(CLUSTER_FILE.read_text(encoding="utf-8"))["available_node_types"]
WORKERS = {"gpu_24gb": "g6.xlarge", "gpu_48gb": "g6e.xlarge", "gpu_80gb": "p5.4xlarge"}
"""EC2's instance type of each worker type."""


# ---- launch --------------------------------------------------------------------------------------------------------


@dataclass
class CommandRecorder:
    """Replacement of the launcher's `subprocess` module that records ssh and rsync commands without running them."""

    DEVNULL: None = None
    commands: list[str] = field(default_factory=list)

    def check_call(self, command: list[str], **_: Any) -> int:
        self.commands.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        self.commands.append(" ".join(command))
        return b""


@dataclass
class LaunchedCluster:
    """Record of a cluster after `ray up` and requests for a worker of each type, and after `ray down`."""

    commands: list[str]
    """SSH and rsync commands of `ray up`."""
    requests: list[dict[str, Any]]
    """Parameters of each RunInstances request, the head's first."""
    instances: list[dict[str, Any]]
    """EC2's descriptions of the instances before `ray down`, tags as a dict."""
    groups: list[dict[str, Any]]
    """Security groups."""
    instance_types: dict[str, dict[str, Any]]
    """EC2's descriptions of the workers' instance types by name."""
    states_after_down: set[str]
    """States of the instances after `ray down`."""

    @property
    def head(self) -> dict[str, Any]:
        (head,) = [instance for instance in self.instances if instance["tags"]["ray-node-type"] == "head"]
        return head

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """Workers by node type."""
        workers = [instance for instance in self.instances if instance["tags"]["ray-node-type"] == "worker"]
        return {worker["tags"]["ray-user-node-type"]: worker for worker in workers}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> LaunchedCluster:
    """Cluster launched with the permissions of raylm-launcher and scaled up with those of raylm-head."""
    home = tmp_path_factory.mktemp("home")
    path = home / "cluster.yaml"
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with simulate_account(home) as patch, contextlib.redirect_stdout(io.StringIO()):
        path.write_text(fill_in_cluster_file(set_up_account()))
        key = create_launching_user()
        boto3.client("iam").put_role_policy(
            RoleName="raylm-head", PolicyName="head", PolicyDocument=read_enforceable_policy("head")
        )

        requests: list[dict[str, Any]] = []
        recorder = CommandRecorder()
        use_credentials(patch, key["AccessKeyId"], key["SecretAccessKey"])
        with enable_iam_authentication():
            config = commands._bootstrap_config(yaml.safe_load(path.read_text()), no_config_cache=True)
            commands.get_or_create_head_node(
                config,
                str(path),
                no_restart=False,
                restart_only=False,
                yes=True,
                override_cluster_name=None,
                _provider=create_provider(config, requests),
                _runner=recorder,
            )
        use_role_credentials(patch, "raylm-head")
        with enable_iam_authentication():
            start_worker_of_each_type(config, create_provider(config, requests))
        use_admin_credentials(patch)
        ec2 = boto3.client("ec2")
        instances = list_instances()
        groups = ec2.describe_security_groups()["SecurityGroups"]
        types = ec2.describe_instance_types(InstanceTypes=list(WORKERS.values()))["InstanceTypes"]
        use_credentials(patch, key["AccessKeyId"], key["SecretAccessKey"])
        with enable_iam_authentication():  # the calls of `ray down`
            provider = create_provider(config, [])
            provider.terminate_nodes(provider.non_terminated_nodes({}))
        use_admin_credentials(patch)
        states = {instance["State"]["Name"] for instance in list_instances()}
    types_by_name = {described["InstanceType"]: described for described in types}
    return LaunchedCluster(recorder.commands, requests, instances, groups, types_by_name, states)


def fill_in_cluster_file(output: str) -> str:
    """Return cluster.yaml with the values in account.py's output in its CHANGE lines."""
    head_image, worker_image = re.findall(r"ImageId: (ami-\w+)", output)
    (group,) = re.findall(r"SecurityGroupIds: &group (\[sg-\w+\])", output)
    text = CLUSTER_FILE.read_text(encoding="utf-8")
    for placeholder, value in {
        "ami-00000000000000000": head_image,
        "ami-00000000000000001": worker_image,
        "[sg-00000000000000000]": group,
        "s3://BUCKET/raylm": f"s3://{BUCKET}/raylm",
    }.items():
        assert text.count(placeholder) == 1 and value in output
        text = text.replace(placeholder, value)
    return text


def create_launching_user() -> dict[str, str]:
    """Create a user with the permissions of raylm-launcher; return the user's access key."""
    iam = boto3.client("iam")
    iam.create_user(UserName="alice")
    iam.put_user_policy(UserName="alice", PolicyName="launcher", PolicyDocument=read_enforceable_policy("launcher"))
    key: dict[str, str] = iam.create_access_key(UserName="alice")["AccessKey"]
    return key


def create_provider(config: dict[str, Any], requests: list[dict[str, Any]]) -> Any:
    """Return Ray's node provider for EC2, which appends the parameters of its RunInstances requests to a list."""
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register("provide-client-params.ec2.RunInstances", lambda params, **_: requests.append(params))
    return provider


def start_worker_of_each_type(config: dict[str, Any], provider: Any) -> None:
    """Start workers as the head's autoscaler does when trials request each type."""
    head_config = {key: value for key, value in config.items() if key != "head_node"}  # as `ray up` copies it there

    class ConfigReader:
        scaling = AutoscalingConfig(head_config, skip_content_hash=True)

        def get_cached_autoscaling_config(self) -> Any:
            return self.scaling

    adapter = NodeProviderAdapter(provider, ConfigReader())
    for name, node_type in ConfigReader.scaling.get_node_type_configs().items():
        assert node_type.min_worker_nodes == 0, "workers must not run without a request"
        if name in WORKERS:
            adapter._launch_nodes_by_type(name, 1, "request")
    assert not adapter.poll_errors()


def list_instances() -> list[dict[str, Any]]:
    """Return EC2's descriptions of all instances, with `tags` as a dict."""
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    instances = [instance for reservation in reservations for instance in reservation["Instances"]]
    return [{**instance, "tags": {tag["Key"]: tag["Value"] for tag in instance["Tags"]}} for instance in instances]


# ---- machines and network ------------------------------------------------------------------------------------------


def test_head_is_small_on_demand_and_runs_no_trials(launched: LaunchedCluster) -> None:
    assert launched.head["InstanceType"] == "m7i.large" and launched.head.get("InstanceLifecycle") != "spot"
    assert NODE_TYPES["head"]["resources"] == {"CPU": 0}


def test_workers_have_the_expected_types_and_are_spot(launched: LaunchedCluster) -> None:
    assert {name: worker["InstanceType"] for name, worker in launched.workers.items()} == WORKERS
    assert {worker["InstanceLifecycle"] for worker in launched.workers.values()} == {"spot"}
    options = [request["InstanceMarketOptions"]["SpotOptions"] for request in launched.requests[1:]]
    assert [0 < float(option["MaxPrice"]) < 10 for option in options] == [True] * 3


def test_every_machine_has_tags_profile_group_imdsv2_and_an_encrypted_disk(launched: LaunchedCluster) -> None:
    (group_id,) = [group["GroupId"] for group in launched.groups if group["GroupName"] == "raylm"]
    assert len(launched.instances) == len(launched.requests) == 4
    for instance in launched.instances:
        assert instance["tags"]["ray-cluster-name"] == instance["tags"]["project"] == "raylm"
        profile = "raylm-head" if instance is launched.head else "raylm-worker"
        assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{profile}")
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [group_id]
    for request in launched.requests:
        assert request["MetadataOptions"]["HttpTokens"] == "required"
        assert {spec["ResourceType"] for spec in request["TagSpecifications"]} == {"instance", "volume"}
        (disk,) = request["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"] and disk["Ebs"]["VolumeType"] == "gp3"


def test_only_the_users_network_and_the_group_have_access(launched: LaunchedCluster) -> None:
    groups = {group["GroupName"]: group for group in launched.groups}
    assert set(groups) == {"default", "raylm"}, "Ray created a group of its own, which is open to the world"
    rules = {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")): (
            [ip_range["CidrIp"] for ip_range in rule["IpRanges"]],
            [pair["GroupId"] for pair in rule["UserIdGroupPairs"]],
        )
        for rule in groups["raylm"]["IpPermissions"]
    }
    group_id = groups["raylm"]["GroupId"]
    assert rules == {("tcp", 22, 22): ([USER_NETWORK], []), ("-1", None, None): ([], [group_id])}


def test_ray_starts_with_the_token_and_a_dashboard_on_localhost(launched: LaunchedCluster) -> None:
    (start,) = [command for command in launched.commands if "ray start --head" in command]
    assert "RAY_AUTH_MODE=token" in start and "--dashboard-host=127.0.0.1" in start
    (copy,) = [command for command in launched.commands if command.startswith("rsync") and "auth_token" in command]
    assert copy.split()[-1].endswith(":~/.ray/auth_token")
    script = "\n".join(launched.commands)
    assert script.index("chmod 600 ~/.ray/auth_token") < script.index("ray start --head")
    assert "~/raylm/scripts/install" in script and "'.[aws]'" in script.replace("'\"'\"'", "'")


def test_resources_of_workers_match_ec2(launched: LaunchedCluster) -> None:
    for name, instance_type in WORKERS.items():
        described = launched.instance_types[instance_type]
        (gpu,) = described["GpuInfo"]["Gpus"]
        resources = NODE_TYPES[name]["resources"]
        gib = gpu["MemoryInfo"]["SizeInMiB"] / 1024
        assert resources["GPU"] == gpu["Count"] == 1 and gib - 2 < resources["gpu_gib"] <= gib
        assert resources["CPU"] == described["VCpuInfo"]["DefaultVCpus"]


def test_ray_down_terminates_every_machine(launched: LaunchedCluster) -> None:
    assert launched.states_after_down == {"terminated"}


def test_started_machines_meet_the_conditions_of_the_policies(launched: LaunchedCluster) -> None:
    """Compare the recorded requests with the policies: cluster's tag, instance type, IMDSv2 and instance profile."""
    for number, request in enumerate(launched.requests):
        (permission,) = [
            statement
            for statement in read_statements(policy_path("head" if number else "launcher"))
            if statement["Action"] == "ec2:RunInstances" and "instance/" in statement["Resource"]
        ]
        (tags,) = [spec["Tags"] for spec in request["TagSpecifications"] if spec["ResourceType"] == "instance"]
        values = {
            **{f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in tags},
            "ec2:InstanceType": request["InstanceType"],
            "ec2:MetadataHttpTokens": request["MetadataOptions"]["HttpTokens"],
            "ec2:InstanceProfile": f"arn:aws:iam::1:instance-profile/{request['IamInstanceProfile']['Name']}",
        }
        conditions = {key: value for test in permission["Condition"].values() for key, value in test.items()}
        assert set(conditions) == {key for key in values if "RequestTag" not in key} | {
            "aws:RequestTag/ray-cluster-name"
        }
        for key, patterns in conditions.items():
            assert any(fnmatch.fnmatchcase(values[key], pattern) for pattern in to_list(patterns)), key
