"""Fixtures: a storage backend of each kind. Test modules load them with `pytest_plugins = ["storages"]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcs import serve_gcs
from s3 import BUCKET, S3Server, serve_s3, set_environment

from raylm.results.bucket import Bucket
from raylm.results.storage import Folder, Storage


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server, and its address and keys in the environment."""
    with serve_s3(tmp_path_factory.mktemp("s3") / "log") as server, set_environment(server.env):
        yield server


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    """A folder of the bucket that no other test uses."""
    return Bucket(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An emulator of Google Cloud Storage, and its address in the environment."""
    with serve_gcs(tmp_path_factory.mktemp("gcs") / "log") as settings, set_environment(settings):
        yield


@pytest.fixture
def google_bucket(gcs: None, tmp_path: Path) -> Bucket:
    """A folder of Google's bucket that no other test uses."""
    return Bucket(f"gs://{BUCKET}/{tmp_path.name}")


@pytest.fixture(params=["folder", "bucket", "google_bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A storage of each kind."""
    if request.param == "folder":
        return Folder(tmp_path / "storage")
    bucket: Bucket = request.getfixturevalue(request.param)
    return bucket
