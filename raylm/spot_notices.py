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

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_TO_ANSWER = 2.0
GOOGLES_NOTICE_SECONDS = 30
AWS = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"
"""The variable by which AWS's own libraries are told of another metadata service, and the one that there is."""
GOOGLE = "GCE_METADATA_HOST", "metadata.google.internal"
"""As Google's libraries."""


class Notice(NamedTuple):
    """The machine is about to be taken away."""

    seconds: int
    """From now."""
    words: str


def aws() -> Notice | None:
    """What AWS announces for this machine (IMDSv2, `spot/instance-action`).

    Raises:
        OSError: if this is none of its machines, or it does not answer.
    """
    service = os.environ.get(*AWS).rstrip("/")
    token = _answer(f"{service}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        found = _answer(f"{service}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is announced
            return None
        raise
    announced = json.loads(found)
    at = datetime.datetime.fromisoformat(announced["time"])
    left = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    return Notice(max(1, int(left)), f"AWS is to {announced['action']} this spot machine at {announced['time']}")


def google() -> Notice | None:
    """What Google announces for this machine (`instance/preempted`).

    Raises:
        OSError: as `aws`.
    """
    url = f"http://{os.environ.get(*GOOGLE)}/computeMetadata/v1/instance/preempted"
    taken = _answer(url, "GET", {"Metadata-Flavor": "Google"}).strip() == "TRUE"
    return Notice(GOOGLES_NOTICE_SECONDS, "Google preempts this spot machine") if taken else None


def _answer(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
        content: bytes = answer.read()
    return content.decode()


CLOUDS: dict[str, Callable[[], Notice | None]] = {"AWS": aws, "Google": google}


def watch() -> None:
    """Looks until something is announced and Ray has taken it."""
    _say(f"looking for spot notices every {SECONDS_BETWEEN_LOOKS:.0f} s")
    while not (host := next(filter(_answers, CLOUDS), None)):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _say(f"this is a machine of {host}")
    while True:
        try:
            notice = CLOUDS[host]()
            if notice and _drained(notice):
                return
        except (OSError, ValueError, KeyError) as error:  # the next look may succeed
            _say(f"{host} does not answer: {error}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _answers(cloud: str) -> bool:
    """Whether this is a machine of a cloud."""
    try:
        CLOUDS[cloud]()
    except (OSError, ValueError, KeyError):
        return False
    return True


def _drained(notice: Notice) -> bool:
    """Has Ray drain this node; says whether it took that."""
    _say(f"{notice.words}; {notice.seconds} s are left")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", notice.words]
    command += ["--deadline-remaining-seconds", str(notice.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _say("Ray was told" if done.returncode == 0 else f"Ray could not be told: {done.stderr.strip()[-500:]}")
    return done.returncode == 0


def _say(words: str) -> None:
    print(f"{datetime.datetime.now(datetime.UTC):%F %T} {words}", flush=True)


def main() -> None:
    """Watches, unless another process on this machine does."""
    lock = FileLock(Path.home() / ".raylm_notices.lock")
    try:
        with lock.acquire(timeout=0):
            watch()
    except Timeout:
        _say("another process of this machine looks already")


if __name__ == "__main__":
    main()
