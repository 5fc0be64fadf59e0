"""Answers of raylm to clusters that cannot be joined, one line each: heads and dashboards that this starts itself.

The heads speak Ray's protocol: they are asked for their versions and nodes.
"""

from __future__ import annotations

import http.server
import json
import os
import platform
import socket
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import ray
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from raylm.errors import UserError
from raylm.tuning.connection import head, session

TOKEN = "0123456789abcdef"
VERSIONS = {"ray_version": ray.__version__, "python_version": platform.python_version()}


class Head(gcs_service_pb2_grpc.InternalKVGcsServiceServicer, gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Head that requires a token, or none, and says that it runs these versions and has one node with this socket."""

    def __init__(self, token: str = TOKEN, raylet: str = __file__, **versions: str) -> None:
        self._token, self._raylet, self._versions = token, raylet, VERSIONS | versions

    def InternalKVGet(self, request: Any, context: Any) -> Any:  # noqa: N802 (Ray's name)
        """Return the versions to a caller who sends the token."""
        if self._token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(self._versions).encode())

    def GetAllNodeInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 (Ray's name)
        """Return a node."""
        node = gcs_pb2.GcsNodeInfo(node_manager_address="10.0.0.5", raylet_socket_name=self._raylet)
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=[node])


def start_head(**options: str) -> str:
    """Start a head and return its address."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    head_node = Head(**options)
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(head_node, server)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(head_node, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    SERVERS.append(server)
    return f"127.0.0.1:{port}"


SERVERS: list[grpc.Server] = []


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Dashboard that requires the token."""

    def do_GET(self) -> None:
        """Answer as Ray does: 401 without a token, 403 to another one."""
        sent = self.headers.get("Authorization")
        is_known = self.path == "/api/version"
        self.send_response(401 if sent is None else 403 if sent != f"Bearer {TOKEN}" else 200 if is_known else 404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def start_dashboard() -> str:
    """Start a dashboard and return its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def say(case: str, address: str, mode: str | None = None, token: str | None = None) -> None:
    """Print what raylm says of an address in an environment with this mode and token."""
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    check = head.check_dashboard if address.startswith("http") and not case.startswith("head") else head.check_head
    try:
        check(address)
        message = f"joined, mode {os.environ.get('RAY_AUTH_MODE')}"
    except UserError as error:
        message = str(error)
    print(f"{case}: {message.replace(address, 'ADDRESS')}")


def main() -> None:
    """Try all cases, in a home without a token."""
    assert Path.home() == Path(sys.argv[1])
    with_token, without, dashboard = start_head(), start_head(token=""), start_dashboard()
    say("no token", with_token)
    say("wrong token", with_token, token="another-token-0123")
    say("mode disabled", with_token, mode="disabled", token=TOKEN)
    say("no token required", without)
    say("no token required, mode token", without, mode="token")
    say("token required", with_token, token=TOKEN)
    say("other Ray", start_head(token="", ray_version="2.9.0"))
    say("other Python", start_head(token="", python_version="3.10.1"))
    say("no node here", start_head(token="", raylet="/nowhere/sockets/raylet"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    say("no head", f"127.0.0.1:{free}")
    say("no port", "127.0.0.1")
    say("head is a URL", dashboard)
    say("head is a dashboard", dashboard.removeprefix("http://"))
    say("dashboard, no token", dashboard)
    say("dashboard, wrong token", dashboard, token="another-token-0123")
    say("dashboard, token", dashboard, token=TOKEN)
    say("dashboard, not there", f"http://127.0.0.1:{free}")
    say("dashboard is a head", f"http://{without}")
    note = Path.home() / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(with_token)
    print(f"own cluster: {'found' if session.resolve_address(None) == with_token else 'not found'}")
    if os.geteuid() == 0:
        os.chown(note, 65534, -1)
    print(f"cluster of another user: {session.resolve_address(None) if os.geteuid() == 0 else 'local'}")
    note.unlink()
    (Path.home() / ".ray").mkdir()
    (Path.home() / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    say("token of the home", with_token)
    os.environ["RAY_AUTH_TOKEN_PATH"] = "/nowhere"
    say("path that is not there", with_token)
    try:
        session.resolve_address("auto")
    except UserError as error:
        print(f"auto: {error}")


if __name__ == "__main__":
    main()
