"""What raylm answers before it joins a cluster: one line each, and nothing of Ray's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "ask_heads.py"
NO_TOKEN = "the cluster at ADDRESS requires a token, and this machine has none (RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH"
WRONG_TOKEN = "the cluster at ADDRESS refuses the token of this machine, RAY_AUTH_TOKEN: it is not that of the cluster"
EXPECTED_ADDRESS = "expected HOST:PORT as `ray start --head` printed it, such as 10.0.0.5:6379, or local"
EXPECTED_URL = "something other than the dashboard of a Ray cluster answers at ADDRESS; expected its URL"
ANSWERS = {
    "no token": NO_TOKEN,
    "wrong token": WRONG_TOKEN,
    "mode disabled": "the cluster at ADDRESS requires a token, but RAY_AUTH_MODE is disabled; unset RAY_AUTH_MODE",
    "no token required": "joined, mode None",
    "no token required, mode token": "RAY_AUTH_MODE is token, and this machine has none (RAY_AUTH_TOKEN and",
    "token required": "joined, mode token",
    "other Ray": "the cluster at ADDRESS runs Ray 2.9.0 on Python ",
    "other Python": "3.10.1, this command Ray",
    "no node here": "this machine is no node of the cluster at ADDRESS (your Ray runs on 10.0.0.5); run the command",
    "no head": f"no Ray head answers at ADDRESS: Connection refused; {EXPECTED_ADDRESS}",
    "no port": f"address ADDRESS: {EXPECTED_ADDRESS}",
    "head is a URL": "a dashboard's URL is for `raylm run --address` only",
    "head is a dashboard": "something other than the head of a Ray cluster",
    "dashboard, no token": NO_TOKEN,
    "dashboard, wrong token": WRONG_TOKEN,
    "dashboard, token": "joined, mode token",
    "dashboard, not there": "no dashboard answers at ADDRESS: Connection refused; run `ray dashboard cluster.yaml`",
    "dashboard is a head": EXPECTED_URL,
    "own cluster": "found",
    "cluster of another user": "local",  # which requires another token
    "token of the home": "joined, mode token",
    "path that is not there": "RAY_AUTH_TOKEN_PATH is /nowhere: No such file or directory; expected a file with",
    "auto": "address auto: no Ray of `ray start` runs on this machine; expected the HOST:PORT of a head, or local",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Answer to each case."""
    home = tmp_path_factory.mktemp("home")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(home), "RAY_TMPDIR": str(home)}
    command = [sys.executable, str(PROGRAM), str(home)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_every_answer_is_one_line(answers: dict[str, str]) -> None:
    assert list(answers) == list(ANSWERS)


@pytest.mark.parametrize("case", ANSWERS)
def test_cluster_is_joined_or_the_reason_is_told(answers: dict[str, str], case: str) -> None:
    assert ANSWERS[case] in answers[case]
