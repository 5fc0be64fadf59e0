"""`python -m raylm.spot_notices`, on each spot machine: tells Ray when the cloud is about to take the machine away.

AWS announces it two minutes before, Google half a minute, in the machine's own metadata. Ray does not look there by
itself. Told, it places nothing there any more, and the trials save themselves and go on elsewhere (`board.Board`).
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
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
"""The variable by which AWS's own libraries are told of another metadata service, and the one that there is."""
GOOGLE_METADATA = "GCE_METADATA_HOST", "metadata.google.internal"
"""As Google's libraries."""


class SpotNotice(NamedTuple):
    """The machine is about to be taken away."""

    seconds_left: int
    """From now."""
    message: str


def check_aws() -> SpotNotice | None:
    """What AWS announces for this machine (IMDSv2, `spot/instance-action`).

    Raises:
        OSError: if this is none of its machines, or it does not answer.
    """
    service = os.environ.get(*AWS_METADATA).rstrip("/")
    token = _request(f"{service}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        found = _request(f"{service}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is announced
            return None
        raise
    announced = json.loads(found)
    at = datetime.datetime.fromisoformat(announced["time"])
    left = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    return SpotNotice(max(1, int(left)), f"AWS is to {announced['action']} this spot machine at {announced['time']}")


def check_google() -> SpotNotice | None:
    """What Google announces for this machine (`instance/preempted`).

    Raises:
        OSError: as `aws`.
    """
    url = f"http://{os.environ.get(*GOOGLE_METADATA)}/computeMetadata/v1/instance/preempted"
    taken = _request(url, "GET", {"Metadata-Flavor": "Google"}).strip() == "TRUE"
    return SpotNotice(GOOGLE_NOTICE_SECONDS, "Google preempts this spot machine") if taken else None


def _request(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        content: bytes = answer.read()
    return content.decode()


CLOUD_CHECKS: dict[str, Callable[[], SpotNotice | None]] = {"AWS": check_aws, "Google": check_google}


def watch_notices() -> None:
    """Looks until something is announced and Ray has taken it."""
    _log(f"looking for spot notices every {POLL_SECONDS:.0f} s")
    while not (host := next(filter(_is_running_on, CLOUD_CHECKS), None)):
        time.sleep(POLL_SECONDS)
    _log(f"this is a machine of {host}")
    while True:
        try:
            notice = CLOUD_CHECKS[host]()
            if notice and _drain_node(notice):
                return
        except (OSError, ValueError, KeyError) as error:  # the next look may succeed
            _log(f"{host} does not answer: {error}")
        time.sleep(POLL_SECONDS)


def _is_running_on(cloud: str) -> bool:
    """Whether this is a machine of a cloud."""
    try:
        CLOUD_CHECKS[cloud]()
    except (OSError, ValueError, KeyError):
        return False
    return True


def _drain_node(notice: SpotNotice) -> bool:
    """Has Ray drain this node; says whether it took that."""
    _log(f"{notice.message}; {notice.seconds_left} s are left")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", notice.message]
    command += ["--deadline-remaining-seconds", str(notice.seconds_left)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _log("Ray was told" if done.returncode == 0 else f"Ray could not be told: {done.stderr.strip()[-500:]}")
    return done.returncode == 0


def _log(message: str) -> None:
    print(f"{datetime.datetime.now(datetime.UTC):%F %T} {message}", flush=True)


def main() -> None:
    """Watches, unless another process on this machine does."""
    lock = FileLock(Path.home() / ".raylm_notices.lock")
    try:
        with lock.acquire(timeout=0):
            watch_notices()
    except Timeout:
        _log("another process of this machine looks already")


if __name__ == "__main__":
    main()
