"""pyarrow's file systems of buckets, s3:// and gs://, for raylm and for Ray Tune alike.

Keys come from the environment or from the machine's own role and are never pickled: what is sent to another process is
made anew there from the URI.
"""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

from pyarrow import fs

RETRY_MINUTES = 10
"""A request that fails for want of an answer (no connection, 5xx, 429, too slow) is repeated for about so long."""
MAX_ATTEMPTS, QUICK_MAX_ATTEMPTS = 14, 3
"""The same for a request to S3, which counts: the waits double from 25 ms."""
TIMEOUT_SECONDS = 30.0
"""A request without a byte for so long is repeated: a bucket that stalls delays, and does not stop, a sweep."""


@functools.cache
def _credentials() -> dict[str, str | None]:
    """The keys in this process's environment when they were first asked for: they are hidden while Ray Tune runs."""
    return {
        "access_key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
    }


class S3(fs.S3FileSystem):
    """S3, or what speaks its language at `AWS_ENDPOINT_URL`."""

    def __init__(self, uri: str, max_attempts: int) -> None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not endpoint:
            region = fs.resolve_s3_region(strip_scheme(uri).split("/")[0])
        super().__init__(
            **_credentials(),
            region=region,
            endpoint_override=endpoint,
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=max_attempts),
            allow_delayed_open=True,  # a small file in one request, not in three
            connect_timeout=TIMEOUT_SECONDS / 3,
            request_timeout=TIMEOUT_SECONDS,
        )
        self._place = uri

    def __reduce__(self) -> Any:
        return S3, (self._place, MAX_ATTEMPTS)


class Gcs(fs.GcsFileSystem):
    """Google Cloud Storage, or what stands in for it at `STORAGE_EMULATOR_HOST`."""

    def __init__(self, uri: str, retry_minutes: float) -> None:
        scheme, _, host = os.environ.get("STORAGE_EMULATOR_HOST", "").rpartition("://")
        elsewhere = {"endpoint_override": host, "scheme": scheme or "http", "anonymous": True} if host else {}
        super().__init__(retry_time_limit=datetime.timedelta(minutes=retry_minutes), **elsewhere)
        self._place = uri

    def __reduce__(self) -> Any:
        return Gcs, (self._place, RETRY_MINUTES)


def open_filesystem(uri: str, *, retries: bool) -> Any:
    """The file system of a bucket's URI.

    Raises:
        OSError: if the bucket is not there, or does not say where it is.
    """
    if uri.startswith("gs://"):
        return Gcs(uri, RETRY_MINUTES if retries else 0.1)
    return S3(uri, MAX_ATTEMPTS if retries else QUICK_MAX_ATTEMPTS)


def strip_scheme(uri: str) -> str:
    """The bucket and the path in it."""
    return uri.split("://", 1)[1]


ERROR_MESSAGES = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "access is denied; check the keys in the environment, or the machine's role",
    "INVALID_ACCESS_KEY_ID": "the key AWS_ACCESS_KEY_ID is not known",
    "SIGNATURE_DOES_NOT_MATCH": "the key AWS_SECRET_ACCESS_KEY does not fit AWS_ACCESS_KEY_ID",
    "EXPIRED_TOKEN": "the keys in the environment have expired",
    "NETWORK_CONNECTION": "it cannot be reached; check the network, and AWS_ENDPOINT_URL if it is set",
}
PERMANENT_ERRORS = [code for code in ERROR_MESSAGES if code != "NETWORK_CONNECTION"]
"""What another try does not mend."""
