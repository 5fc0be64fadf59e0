"""AWS account that moto simulates in this process: public images, credentials, and the policies of clusters/aws."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import moto
import pytest
from moto.ssm.models import Parameter, ssm_backends
from ray.autoscaler._private.aws import utils as aws_utils

ROOT = Path(__file__).resolve().parents[1]
POLICIES = sorted((ROOT / "clusters" / "aws").glob("*.json"))
ACCOUNT_ID = "123456789012"
"""Id of moto's account."""
REGION = "us-west-2"
BUCKET = "results-of-alice"
USER_NETWORK = "203.0.113.7/32"
"""Network from which the user may connect."""
ACCOUNT_OPTIONS = ["--region", REGION, "--bucket", BUCKET, "--ssh-from", USER_NETWORK]
"""Command line of account.py."""


def _import_account_script() -> ModuleType:
    """Import clusters/aws/account.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("account", ROOT / "clusters" / "aws" / "account.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


account_script = _import_account_script()


def set_up_account() -> str:
    """Run account.py with `ACCOUNT_OPTIONS`; return its output."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        account_script.main(ACCOUNT_OPTIONS)
    return output.getvalue()


@contextlib.contextmanager
def simulate_account(home: Path) -> Iterator[pytest.MonkeyPatch]:
    """Simulate an empty AWS account with a region's public images, and a user with this home."""
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name, value in {"HOME": home, "TMPDIR": home, "AWS_DEFAULT_REGION": REGION}.items():
            patch.setenv(name, str(value))
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):  # would bypass moto
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.chdir(ROOT)  # file_mounts are relative to the working directory of `ray up`
        use_admin_credentials(patch)
        _publish_images()
        yield patch
    _clear_client_caches()


def use_credentials(patch: pytest.MonkeyPatch, key_id: str, secret_key: str, session_token: str = "") -> None:
    """Use these credentials for all later requests to AWS."""
    patch.setenv("AWS_ACCESS_KEY_ID", key_id)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    patch.setenv("AWS_SESSION_TOKEN", session_token)
    _clear_client_caches()


def use_admin_credentials(patch: pytest.MonkeyPatch) -> None:
    """Use moto's default credentials, which have all permissions."""
    use_credentials(patch, "testing", "testing")


def use_role_credentials(patch: pytest.MonkeyPatch, role: str) -> None:
    """Use the credentials of a machine with this role."""
    use_admin_credentials(patch)
    arn = f"arn:aws:iam::{ACCOUNT_ID}:role/{role}"
    credentials = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="machine")["Credentials"]
    use_credentials(patch, credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"])


def _clear_client_caches() -> None:
    boto3.setup_default_session()
    aws_utils.resource_cache.cache_clear()
    aws_utils.client_cache.cache_clear()


def _publish_images() -> None:
    """Add the SSM parameters of public images, which moto's API does not allow to write."""
    image_ids = [image["ImageId"] for image in boto3.client("ec2").describe_images()["Images"]]
    parameters = ssm_backends[ACCOUNT_ID][REGION]._parameters
    common = {"description": "", "allowed_pattern": None, "keyid": None, "last_modified_date": 0, "version": 1}
    common |= {"parameter_type": "String", "data_type": "aws:ec2:image"}
    for name, image_id in zip(account_script.IMAGES.values(), sorted(image_ids), strict=False):
        parameters[name].append(Parameter(account_id=ACCOUNT_ID, name=name, value=image_id, **common))


def policy_path(name: str) -> Path:
    """Return the path of a policy file."""
    return ROOT / "clusters" / "aws" / f"{name}-policy.json"


def read_statements(path: Path) -> list[dict[str, Any]]:
    """Return the statements of a policy file."""
    statements: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["Statement"]
    return statements


def read_enforceable_policy(name: str) -> str:
    """Return a policy with its effects and actions alone: moto checks no resources and conditions of EC2's actions."""
    statements = [
        {"Effect": statement["Effect"], "Action": statement["Action"], "Resource": "*"}
        for statement in read_statements(policy_path(name))
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def to_list(value: str | list[str]) -> list[str]:
    """Return a policy's value as a list; policies allow a string in place of a list of length 1."""
    return [value] if isinstance(value, str) else value
