"""Spot notices: drains a machine's Ray node when the cloud announces its end. Run as `python -m raylm.spot_notices`.

AWS announces the end of a spot machine two minutes ahead, Google half a minute, in the machine's metadata, which Ray
does not read. Ray places no more work on a draining node; trials there save a checkpoint and resume on another node
(`raylm.tuning.coordinator`).
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
GOOGLE_NOTICE_SECONDS = 30
AWS_METADATA = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"
"""Environment variable with the URL of the metadata service, as in AWS's libraries, and its default."""
GOOGLE_METADATA = "GCE_METADATA_HOST", "metadata.google.internal"
"""Environment variable with the host of the metadata service, as in Google's libraries, and its default."""


class SpotNotice(NamedTuple):
    """Announcement that this machine is about to be taken away."""

    seconds_left: int
    """Time until then."""
    message: str


def check_aws() -> SpotNotice | None:
    """Return AWS's notice for this machine, or None (IMDSv2, `spot/instance-action`).

    Raises:
        OSError: if this is no AWS machine, or the service does not answer.
    """
    service = os.environ.get(*AWS_METADATA).rstrip("/")
    token = _request(f"{service}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        content = _request(
            f"{service}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
        )
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    action = json.loads(content)
    at = datetime.datetime.fromisoformat(action["time"])
    left = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    return SpotNotice(max(1, int(left)), f"AWS will {action['action']} this spot machine at {action['time']}")


def check_google() -> SpotNotice | None:
    """Return Google's notice for this machine, or None (`instance/preempted`).

    Raises:
        OSError: if this is no Google machine, or the service does not answer.
    """
    url = f"http://{os.environ.get(*GOOGLE_METADATA)}/computeMetadata/v1/instance/preempted"
    is_preempted = _request(url, "GET", {"Metadata-Flavor": "Google"}).strip() == "TRUE"
    return SpotNotice(GOOGLE_NOTICE_SECONDS, "Google preempts this spot machine") if is_preempted else None


def _request(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        content: bytes = response.read()
    return content.decode()


CLOUD_CHECKS: dict[str, Callable[[], SpotNotice | None]] = {"AWS": check_aws, "Google": check_google}


def watch_notices() -> None:
    """Poll until a notice arrives and Ray drains this node."""
    _log(f"polling for spot notices every {POLL_SECONDS:.0f} s")
    while not (cloud := next(filter(_is_running_on, CLOUD_CHECKS), None)):
        time.sleep(POLL_SECONDS)
    _log(f"this is a machine of {cloud}")
    while True:
        try:
            notice = CLOUD_CHECKS[cloud]()
            if notice and _drain_node(notice):
                return
        except (OSError, ValueError, KeyError) as error:  # the next poll may succeed
            _log(f"{cloud} does not answer: {error}")
        time.sleep(POLL_SECONDS)


def _is_running_on(cloud: str) -> bool:
    """Return whether this is a machine of a cloud."""
    try:
        CLOUD_CHECKS[cloud]()
    except (OSError, ValueError, KeyError):
        return False
    return True


def _drain_node(notice: SpotNotice) -> bool:
    """Ask Ray to drain this node; return True on success."""
    _log(f"{notice.message}; {notice.seconds_left} s left")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", notice.message]
    command += ["--deadline-remaining-seconds", str(notice.seconds_left)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _log("Ray drains this node" if done.returncode == 0 else f"Ray did not accept: {done.stderr.strip()[-500:]}")
    return done.returncode == 0


def _log(message: str) -> None:
    print(f"{datetime.datetime.now(datetime.UTC):%F %T} {message}", flush=True)


def main() -> None:
    """Poll for notices, unless another process on this machine does."""
    try:
        folder = Path.home()
    except RuntimeError:  # no HOME, and a user who is not in /etc/passwd
        folder = Path(tempfile.gettempdir())
    lock = FileLock(folder / ".raylm_notices.lock")
    try:
        with lock.acquire(timeout=0):
            watch_notices()
    except Timeout:
        _log("another process on this machine polls already")


if __name__ == "__main__":
    main()
