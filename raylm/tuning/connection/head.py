"""Checks of a cluster before a command uses it: that its head answers, the token, and its versions.

Ray itself repeats a call that cannot succeed for 20 s, prints a line each time, and names the cause in a stack trace.
The token of this machine is sent only to a cluster that requires one.
"""

from __future__ import annotations

import http.client
import os
import platform
import socket
import urllib.error
import urllib.request

import ray

from raylm import machine
from raylm.errors import UserError
from raylm.tuning import ray_private

CONNECT_TIMEOUT_SECONDS = 2.0
ANSWER_TIMEOUT_SECONDS = 10.0
"""Time for the head, or its dashboard, to answer a request."""
EXAMPLE = "10.0.0.5:6379"
DASHBOARD_PORT = 8265
MAX_HOSTS = 5
"""Nodes that a message names."""
MISSING_TOKEN_STATUS, WRONG_TOKEN_STATUS = 401, 403
"""HTTP status of the dashboard's answers to requests without a token, and with another one."""


def check_head(address: str) -> None:
    """Check that this process can join a cluster, and let it send this machine's token if the cluster requires one.

    Args:
        address: HOST:PORT of the head.

    Raises:
        UserError: if no head answers there, it requires a token that this machine lacks, runs other versions, or has no
            node on this machine.
    """
    _check_port(address)
    answer = ray_private.ask_head(address, {}, ANSWER_TIMEOUT_SECONDS)
    if answer.status == "UNAUTHENTICATED":
        place = _enable_required_token(address)
        answer = ray_private.ask_head(address, ray_private.token_headers(), ANSWER_TIMEOUT_SECONDS)
        if answer.status == "UNAUTHENTICATED":
            raise UserError(_describe_wrong_token(address, place))
    elif answer.status == "OK" and os.environ.get("RAY_AUTH_MODE") == "token":
        _enable_token("RAY_AUTH_MODE is token")  # without one Ray refuses to send requests
    if answer.status == "DEADLINE_EXCEEDED":
        raise UserError(f"the head at {address} does not answer within {ANSWER_TIMEOUT_SECONDS:.0f} s; see its logs")
    if answer.status != "OK":
        kind = "other than the head of a Ray cluster, or a head that uses TLS otherwise (RAY_USE_TLS),"
        raise UserError(f"something {kind} answers at {address}; {_advise_on_address(address)}")
    if answer.versions and not ray_private.are_versions_compatible(answer.versions):
        found = "Ray {ray_version} on Python {python_version}".format(**answer.versions)
        raise UserError(
            f"the cluster at {address} runs {found}, this command Ray {ray.__version__} on Python "
            f"{platform.python_version()}; Ray needs the same versions on both: use the environment of the cluster, "
            "or --address local to start Ray here"
        )
    if answer.nodes and not any(os.access(raylet, os.R_OK | os.W_OK) for _, raylet in answer.nodes):
        hosts = ", ".join(host for host, _ in answer.nodes[:MAX_HOSTS])
        raise UserError(
            f"this machine is no node of the cluster at {address} (your Ray runs on {hosts}); run the command "
            f"on a node, or submit it from here with the dashboard's URL: --address http://HEAD:{DASHBOARD_PORT}"
        )


def _check_port(address: str) -> None:
    """Raise a UserError if an address is not HOST:PORT, or nothing listens there."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"address {address}: {_advise_on_address(address)}")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS):
            return
    except socket.gaierror:
        reason = f"there is no host {host}"
    except TimeoutError:
        reason = (
            f"no answer within {CONNECT_TIMEOUT_SECONDS:.0f} s; is the machine up, and the port open in its firewall?"
        )
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(f"no Ray head answers at {address}: {reason}; {_advise_on_address(address)}")


def _advise_on_address(address: str) -> str:
    expected = f"expected HOST:PORT as `ray start --head` printed it, such as {EXAMPLE}, or local to start Ray here"
    if address.startswith(("http://", "https://")):
        return f"{expected}; a dashboard's URL is for `raylm run --address` only"
    if address.endswith(f":{DASHBOARD_PORT}"):
        return f"{expected}; for the dashboard put http:// before it"
    return expected


# ---- the dashboard ------------------------------------------------------------------------------------------------


def check_dashboard(url: str) -> None:
    """Check that a cluster's dashboard answers, and let this process send this machine's token if it requires one.

    Args:
        url: URL of the dashboard, such as `http://127.0.0.1:8265`.

    Raises:
        UserError: if it does not answer, or requires a token that this machine lacks.
    """
    status = _request_version(url, {})
    if status == MISSING_TOKEN_STATUS:
        place = _enable_required_token(url)
        status = _request_version(url, ray_private.token_headers())
        if status in (MISSING_TOKEN_STATUS, WRONG_TOKEN_STATUS):
            raise UserError(_describe_wrong_token(url, place))
    if status != 200:
        raise UserError(
            f"something other than the dashboard of a Ray cluster answers at {url}; expected its URL, as "
            f"`ray start --head` printed it, such as http://127.0.0.1:{DASHBOARD_PORT}"
        )


def _request_version(url: str, headers: dict[str, str]) -> int:
    """Return the HTTP status of the dashboard's answer to a request for its version, or 0 if it is not HTTP."""
    request = urllib.request.Request(f"{url.rstrip('/')}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except http.client.HTTPException:
        return 0
    except (OSError, ValueError) as error:  # an address without a host is a ValueError
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or cause
        raise UserError(
            f"no dashboard answers at {url}: {reason}; run `ray dashboard cluster.yaml` to forward that of a cluster "
            "of `ray up`, and keep it running"
        ) from error


# ---- the token ----------------------------------------------------------------------------------------------------


def _enable_required_token(address: str) -> str:
    """Let this process send the token of this machine to a cluster that requires one; return where it was found.

    Raises:
        UserError: if there is none, or `RAY_AUTH_MODE` forbids it.
    """
    cause = f"the cluster at {address} requires a token"
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise UserError(f"{cause}, but RAY_AUTH_MODE is {mode}; unset RAY_AUTH_MODE")
    return _enable_token(cause)


def _enable_token(cause: str) -> str:
    """Let this process send the token of this machine; return where it was found, or raise a UserError if nowhere."""
    place = machine.find_ray_token()
    if not ray_private.enable_token():
        searched = "RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set, and ~/.ray/auth_token has none"
        raise UserError(
            f"{cause}, and this machine has none ({searched}); copy the head's ~/.ray/auth_token to the same place, "
            "or set RAY_AUTH_TOKEN to what `ray get-auth-token` prints there"
        )
    return place or "that of Kubernetes"


def _describe_wrong_token(address: str, place: str) -> str:
    """Return a message that a cluster refuses the token of this machine, found in this place."""
    return (
        f"the cluster at {address} refuses the token of this machine, {place}: it is not that of the cluster, which "
        "`ray get-auth-token` prints on its head; copy that one, or use --address local to start Ray here"
    )
