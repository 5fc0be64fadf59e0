"""Makes in an AWS account what cluster.yaml builds on, with nobody given more than they need.

A private bucket, a role for the head and one for the workers, a policy for those who launch clusters, and a security
group that lets in SSH from one network alone. It is run once, by somebody who may make roles; run again, it adds what
is missing. It ends with the lines that belong into cluster.yaml. `--remove` takes all but the bucket away again.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

HERE = Path(__file__).resolve().parent
GROUP = "raylm"
LAUNCHER = "raylm-launcher"
ROLES = {"raylm-head": ("storage", "head"), "raylm-worker": ("storage",)}
"""A role's policies, by the name of their file."""
IMAGES = {
    "head": "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "workers": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
}
"""Where AWS publishes the images' ids of each region."""
WIDEST = 16
"""The shortest prefix of a network that SSH may come from: a whole university's, not a whole provider's."""


def policy(name: str, bucket: str) -> str:
    """The text of a policy file for this bucket."""
    return (HERE / f"{name}-policy.json").read_text(encoding="utf-8").replace("BUCKET", bucket)


def network(text: str) -> str:
    """The network that SSH may come from, as given on the command line."""
    try:
        given = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; expected for example 203.0.113.7/32") from error
    if given.prefixlen < WIDEST:
        raise argparse.ArgumentTypeError(f"{text} is a large part of the internet; expected /{WIDEST} or narrower")
    return str(given)


def make(session: boto3.Session, bucket: str, ssh_from: str) -> str:
    """Makes what is missing, and gives the security group's id."""
    _make_bucket(session, bucket)
    iam = session.client("iam")
    with_none(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")  # else no spot machine ever comes
    for role, policies in ROLES.items():
        with_none(iam.create_role, RoleName=role, AssumeRolePolicyDocument=policy("trust", bucket))
        for name in policies:
            iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=policy(name, bucket))
        if with_none(iam.create_instance_profile, InstanceProfileName=role):
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    with_none(iam.create_policy, PolicyName=LAUNCHER, PolicyDocument=policy("launcher", bucket))
    return _make_group(session.client("ec2"), ssh_from)


def with_none(call: Any, **arguments: Any) -> Any:
    """What a call that makes something answers; None where it is there already."""
    try:
        return call(**arguments)
    except ClientError as error:
        there = ("EntityAlreadyExists", "BucketAlreadyOwnedByYou", "InvalidPermission.Duplicate")
        if error.response["Error"]["Code"] in there or "has been taken in this account" in str(error):
            return None
        raise


def _make_bucket(session: boto3.Session, bucket: str) -> None:
    s3, region = session.client("s3"), session.region_name
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with_none(s3.create_bucket, Bucket=bucket, **place)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))


def _make_group(ec2: Any, ssh_from: str) -> str:
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit("this region has no default VPC: `aws ec2 create-default-vpc` makes one")
    found = _groups(ec2)
    group: str = (
        found[0]
        if found
        else ec2.create_security_group(
            GroupName=GROUP,
            VpcId=vpcs[0]["VpcId"],
            Description="raylm: SSH from one network, everything within the group",
        )["GroupId"]
    )
    within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    for rule in (within, ssh):
        with_none(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[rule])
    return group


def _groups(ec2: Any) -> list[str]:
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [GROUP]}])["SecurityGroups"]
    return [group["GroupId"] for group in found]


def remove(session: boto3.Session) -> None:
    """Takes away all but the bucket. Instances of the group must have ended."""
    iam, ec2 = session.client("iam"), session.client("ec2")
    for group in _groups(ec2):
        ec2.delete_security_group(GroupId=group)
    for role, policies in ROLES.items():
        iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
        iam.delete_instance_profile(InstanceProfileName=role)
        for name in policies:
            iam.delete_role_policy(RoleName=role, PolicyName=name)
        iam.delete_role(RoleName=role)
    account = session.client("sts").get_caller_identity()["Account"]
    iam.delete_policy(PolicyArn=f"arn:aws:iam::{account}:policy/{LAUNCHER}")


def images(session: boto3.Session) -> dict[str, str]:
    """The ids of head's and workers' image in this region."""
    ssm = session.client("ssm")
    return {kind: ssm.get_parameter(Name=name)["Parameter"]["Value"] for kind, name in IMAGES.items()}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", required=True, help="of the cluster, e.g. us-west-2")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bucket", help="of the results; made if it is not there")
    what.add_argument("--remove", action="store_true", help="take everything away again but the bucket")
    parser.add_argument("--ssh-from", type=network, help="the network that SSH may come from, e.g. 203.0.113.7/32")
    given = parser.parse_args(arguments)
    session = boto3.Session(region_name=given.region)
    if given.remove:
        remove(session)
        return
    if not given.ssh_from:
        parser.error("--bucket needs --ssh-from: your address is what https://checkip.amazonaws.com answers, with /32")
    group, ids = make(session, given.bucket, given.ssh_from), images(session)
    print(f"region: {given.region}")
    print(f"ImageId: {ids['head']}  # of the head")
    print(f"SecurityGroupIds: &group [{group}]")
    print(f"ImageId: {ids['workers']}  # of the workers")
    print(f"RAYLM_STORAGE=s3://{given.bucket}/raylm")
    print(
        f"who launches clusters needs the policy {LAUNCHER} and, to read results, what is in storage-policy.json",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
