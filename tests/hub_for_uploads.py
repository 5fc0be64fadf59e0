"""Stand-in for the upload API of the Hugging Face Hub, with two tokens."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITE_TOKEN, READ_TOKEN = "hf_" + "w" * 34, "hf_" + "r" * 34
"""Tokens with and without write access."""


class UploadServer(ThreadingHTTPServer):
    """Server that keeps uploaded model repositories by full name, each with its visibility and files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _UploadHandler)
        self.visibilities: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large_files: dict[str, bytes] = {}
        self.commit_messages: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _UploadHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send_json(self, status: int, content: Any = None) -> None:
        text = json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        content = self.read_body()
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.large_files[self.path.removeprefix("/large/")] = content
        self.send_json(200)

    def do_POST(self) -> None:
        body = self.read_body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITE_TOKEN, READ_TOKEN):
            return self.send_json(401, {"error": "Invalid username or password."})
        if token == READ_TOKEN:
            return self.send_json(403, {"error": "You have read access but not the required permissions"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            there = name in self.server.visibilities
            self.server.visibilities.setdefault(name, asked.get("visibility", "public"))
            return self.send_json(409 if there else 200, {"url": f"{self.server.url}/{name}", "error": "exists"})
        if self.path == "/api/validate-yaml":
            return self.send_json(200, {"errors": [], "warnings": []})
        if self.path.endswith("/info/lfs/objects/batch"):
            found = json.loads(body)["objects"]
            actions = {one["oid"]: {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}} for one in found}
            content = [{**one, "actions": actions[one["oid"]]} for one in found]
            return self.send_json(200, {"transfer": "basic", "objects": content})
        repository, _, asks = self.path.removeprefix("/api/models/").partition("/preupload/")
        if asks:
            found = json.loads(body)["files"]
            modes = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in found}
            content = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self.send_json(200, {"files": content})
        repository, _, asks = self.path.removeprefix("/api/models/").partition("/commit/")
        return self.handle_commit(repository, body) if asks else self.send_json(404)

    def handle_commit(self, repository: str, body: bytes) -> None:
        files = self.server.files.setdefault(repository, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commit_messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.large_files[value["oid"]]
        where = f"{self.server.url}/{repository}/commit/{'0' * 40}"
        self.send_json(200, {"commitUrl": where, "commitOid": "0" * 40, "success": True})


@contextlib.contextmanager
def serve_uploads() -> Iterator[UploadServer]:
    """Serve uploads until the context exits."""
    with UploadServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
