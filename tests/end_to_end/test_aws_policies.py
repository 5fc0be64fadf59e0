"""Policies and script of clusters/aws: least privilege, and a setup that can be repeated and removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_account import (
    BUCKET,
    POLICIES,
    REGION,
    account_script,
    policy_path,
    read_statements,
    set_up_account,
    simulate_account,
    to_list,
    use_role_credentials,
)
from botocore.exceptions import ClientError
from moto.core.authorization import enable_iam_authentication


def test_worker_can_access_the_bucket_and_no_machine(tmp_path: Path) -> None:
    with simulate_account(tmp_path) as patch:
        set_up_account()
        use_role_credentials(patch, "raylm-worker")
        s3, ec2, iam = (boto3.client(name) for name in ("s3", "ec2", "iam"))
        with enable_iam_authentication():
            s3.put_object(Bucket=BUCKET, Key="raylm/probe", Body=b"written")
            assert s3.get_object(Bucket=BUCKET, Key="raylm/probe")["Body"].read() == b"written"
            s3.delete_object(Bucket=BUCKET, Key="raylm/probe")
            forbidden: list[Callable[[], Any]] = [
                lambda: s3.put_object(Bucket=BUCKET, Key="elsewhere/probe", Body=b""),
                lambda: s3.delete_bucket(Bucket=BUCKET),
                lambda: ec2.describe_instances(),
                lambda: ec2.run_instances(ImageId="ami-1", MinCount=1, MaxCount=1),
                lambda: iam.list_roles(),
            ]
            for request in forbidden:
                with pytest.raises(ClientError, match=r"AccessDenied|UnauthorizedOperation"):
                    request()


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_policy_grants_no_more_than_needed(path: Path) -> None:
    for statement in read_statements(path):
        actions = to_list(statement["Action"])
        assert not any("*" in action for action in actions), statement["Sid"]
        if to_list(statement.get("Resource", [])) == ["*"]:  # AWS cannot restrict Describe actions to resources
            assert all(action.startswith("ec2:Describe") for action in actions), statement["Sid"]
        if set(actions) & {"ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"}:
            assert statement["Condition"], statement["Sid"]


@pytest.mark.parametrize(("name", "role"), [("head", "raylm-worker"), ("launcher", "raylm-head")])
def test_policy_denies_access_to_other_machines_and_roles(name: str, role: str) -> None:
    statements = read_statements(policy_path(name))
    by_action = {action: statement for statement in statements for action in to_list(statement["Action"])}
    own_cluster = {"StringLike": {"aws:ResourceTag/ray-cluster-name": "raylm*"}}
    assert by_action["ec2:TerminateInstances"]["Condition"] == own_cluster
    assert by_action["iam:PassRole"]["Resource"] == f"arn:aws:iam::*:role/{role}"
    for statement in statements:
        if statement["Action"] == "ec2:CreateTags" and "StringLike" in statement["Condition"]:
            assert statement["Condition"]["StringLike"] == own_cluster["StringLike"]


def test_setup_is_idempotent_and_removable(tmp_path: Path) -> None:
    with simulate_account(tmp_path):
        output = set_up_account()
        assert set_up_account() == output
        s3, iam, ec2 = (boto3.client(name) for name in ("s3", "iam", "ec2"))
        access_block = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
        assert list(access_block.values()) == [True] * 4
        roles = account_script.ROLES
        policies = {role: sorted(iam.list_role_policies(RoleName=role)["PolicyNames"]) for role in roles}
        assert policies == {"raylm-head": ["head", "storage"], "raylm-worker": ["storage"]}
        assert not any(iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] for role in roles)

        account_script.main(["--region", REGION, "--remove"])
        assert not {role["RoleName"] for role in iam.list_roles()["Roles"]} & set(roles)
        assert [group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]] == ["default"]
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == [BUCKET]


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/8", "home", "203.0.113.7/24"])
def test_ssh_from_an_invalid_or_large_network_is_refused(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        account_script.main(["--region", REGION, "--bucket", "b", "--ssh-from", network])
    assert "--ssh-from" in capsys.readouterr().err
