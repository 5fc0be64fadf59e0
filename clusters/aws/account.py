"""Create the AWS resources that cluster.yaml needs, with least privilege.

These are a private bucket, a role for the head and one for the workers, a policy for users who launch clusters, and a
security group that allows SSH from one network only. Run it once, as a user who may create roles; run again, it adds
missing resources. It prints the lines to copy into cluster.yaml. `--remove` removes everything except the bucket.
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
"""Names of the policy files of each role."""
IMAGES = {
    "head": "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "workers": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
}
"""SSM parameters with the image ids of each region."""
MIN_PREFIX = 16
"""Shortest network prefix that SSH may be allowed from: a university's network, not a provider's."""


def read_policy(name: str, bucket: str) -> str:
    """Return the text of a policy file for this bucket."""
    return (HERE / f"{name}-policy.json").read_text(encoding="utf-8").replace("BUCKET", bucket)


def parse_network(text: str) -> str:
    """Parse the network that SSH is allowed from."""
    try:
        parsed = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; expected for example 203.0.113.7/32") from error
    if parsed.prefixlen < MIN_PREFIX:
        raise argparse.ArgumentTypeError(f"{text} is a large part of the internet; expected /{MIN_PREFIX} or narrower")
    return str(parsed)


def create(session: boto3.Session, bucket: str, ssh_from: str) -> str:
    """Create missing resources and return the security group's id."""
    _create_bucket(session, bucket)
    iam = session.client("iam")
    create_if_missing(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")  # required for spot machines
    for role, policies in ROLES.items():
        create_if_missing(iam.create_role, RoleName=role, AssumeRolePolicyDocument=read_policy("trust", bucket))
        for name in policies:
            iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=read_policy(name, bucket))
        if create_if_missing(iam.create_instance_profile, InstanceProfileName=role):
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    create_if_missing(iam.create_policy, PolicyName=LAUNCHER, PolicyDocument=read_policy("launcher", bucket))
    return _create_group(session.client("ec2"), ssh_from)


def create_if_missing(call: Any, **arguments: Any) -> Any:
    """Return the response of a call that creates a resource, or None if the resource exists already."""
    try:
        return call(**arguments)
    except ClientError as error:
        exists = ("EntityAlreadyExists", "BucketAlreadyOwnedByYou", "InvalidPermission.Duplicate")
        if error.response["Error"]["Code"] in exists or "has been taken in this account" in str(error):
            return None
        raise


def _create_bucket(session: boto3.Session, bucket: str) -> None:
    s3, region = session.client("s3"), session.region_name
    location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    create_if_missing(s3.create_bucket, Bucket=bucket, **location)
    blocked = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocked, True))


def _create_group(ec2: Any, ssh_from: str) -> str:
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit("this region has no default VPC: create one with `aws ec2 create-default-vpc`")
    existing = _find_groups(ec2)
    group: str = (
        existing[0]
        if existing
        else ec2.create_security_group(
            GroupName=GROUP,
            VpcId=vpcs[0]["VpcId"],
            Description="raylm: SSH from one network, everything within the group",
        )["GroupId"]
    )
    within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    for rule in (within, ssh):
        create_if_missing(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[rule])
    return group


def _find_groups(ec2: Any) -> list[str]:
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [GROUP]}])["SecurityGroups"]
    return [group["GroupId"] for group in found]


def remove(session: boto3.Session) -> None:
    """Remove everything except the bucket. Instances of the group must have terminated."""
    iam, ec2 = session.client("iam"), session.client("ec2")
    for group in _find_groups(ec2):
        ec2.delete_security_group(GroupId=group)
    for role, policies in ROLES.items():
        iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
        iam.delete_instance_profile(InstanceProfileName=role)
        for name in policies:
            iam.delete_role_policy(RoleName=role, PolicyName=name)
        iam.delete_role(RoleName=role)
    account = session.client("sts").get_caller_identity()["Account"]
    iam.delete_policy(PolicyArn=f"arn:aws:iam::{account}:policy/{LAUNCHER}")


def find_images(session: boto3.Session) -> dict[str, str]:
    """Return the image ids of head and workers in this region."""
    ssm = session.client("ssm")
    return {kind: ssm.get_parameter(Name=name)["Parameter"]["Value"] for kind, name in IMAGES.items()}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and create or remove the resources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", required=True, help="region of the cluster, e.g. us-west-2")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--bucket", help="bucket of the results; created if it does not exist")
    action.add_argument("--remove", action="store_true", help="remove everything except the bucket")
    parser.add_argument("--ssh-from", type=parse_network, help="network that SSH is allowed from, e.g. 203.0.113.7/32")
    options = parser.parse_args(arguments)
    session = boto3.Session(region_name=options.region)
    if options.remove:
        remove(session)
        return
    if not options.ssh_from:
        parser.error("--bucket requires --ssh-from: your address as shown by https://checkip.amazonaws.com, with /32")
    group, ids = create(session, options.bucket, options.ssh_from), find_images(session)
    print(f"region: {options.region}")
    print(f"ImageId: {ids['head']}  # of the head")
    print(f"SecurityGroupIds: &group [{group}]")
    print(f"ImageId: {ids['workers']}  # of the workers")
    print(f"RAYLM_STORAGE=s3://{options.bucket}/raylm")
    print(
        f"users who launch clusters need the policy {LAUNCHER} and, to read results, storage-policy.json",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
