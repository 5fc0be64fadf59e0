"""pyarrow file systems of buckets, s3:// and gs://, used by raylm and by Ray Tune.

Credentials come from the environment or the machine's role and are never pickled: another process opens its file
system from the URI.
"""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

from pyarrow import fs

RETRY_MINUTES = 10
"""Approximate time for which a request is retried that gets no answer (no connection, 5xx, 429, timeout)."""
QUICK_RETRY_MINUTES = 0.1
MAX_ATTEMPTS, QUICK_MAX_ATTEMPTS = 14, 3
"""Numbers of attempts of S3 clients, which take about as long: delays double from 25 ms."""
TIMEOUT_SECONDS = 30.0
"""Time without data after which a request is retried, so that a bucket that stalls delays a sweep but does not end
it."""


@functools.cache
def _credentials() -> dict[str, str | None]:
    """Return the keys of this process's environment at the first call: they are hidden while Ray Tune runs."""
    return {
        "access_key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
    }


class S3(fs.S3FileSystem):
    """S3, or a server with its API at `AWS_ENDPOINT_URL`."""

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
            allow_delayed_open=True,  # writes a small file in one request instead of three
            connect_timeout=TIMEOUT_SECONDS / 3,
            request_timeout=TIMEOUT_SECONDS,
        )
        self._uri = uri

    def __reduce__(self) -> Any:
        return S3, (self._uri, MAX_ATTEMPTS)


class Gcs(fs.GcsFileSystem):
    """Google Cloud Storage, or an emulator of it at `STORAGE_EMULATOR_HOST`."""

    def __init__(self, uri: str, retry_minutes: float) -> None:
        scheme, _, host = os.environ.get("STORAGE_EMULATOR_HOST", "").rpartition("://")
        emulator = {"endpoint_override": host, "scheme": scheme or "http", "anonymous": True} if host else {}
        super().__init__(retry_time_limit=datetime.timedelta(minutes=retry_minutes), **emulator)
        self._uri = uri

    def __reduce__(self) -> Any:
        return Gcs, (self._uri, RETRY_MINUTES)


def open_filesystem(uri: str, *, retries: bool) -> Any:
    """Return the file system for the URI of a bucket.

    Raises:
        OSError: if the region of the bucket cannot be found.
    """
    if uri.startswith("gs://"):
        return Gcs(uri, RETRY_MINUTES if retries else QUICK_RETRY_MINUTES)
    return S3(uri, MAX_ATTEMPTS if retries else QUICK_MAX_ATTEMPTS)


def strip_scheme(uri: str) -> str:
    """Return bucket and path of a URI."""
    return uri.split("://", 1)[1]


ERROR_MESSAGES = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "access is denied; check the keys in the environment, or the machine's role",
    "INVALID_ACCESS_KEY_ID": "the key AWS_ACCESS_KEY_ID is not known",
    "SIGNATURE_DOES_NOT_MATCH": "the key AWS_SECRET_ACCESS_KEY does not fit AWS_ACCESS_KEY_ID",
    "EXPIRED_TOKEN": "the keys in the environment have expired",
    "NETWORK_CONNECTION": "it cannot be reached; check the network, and AWS_ENDPOINT_URL if it is set",
}
"""Messages for errors of a bucket, by a code in the text of pyarrow's error."""
PERMANENT_ERRORS = [code for code in ERROR_MESSAGES if code != "NETWORK_CONNECTION"]
"""Codes of errors that a retry cannot fix."""
