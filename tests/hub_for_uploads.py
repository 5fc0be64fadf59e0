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
    """Server that keeps uploaded model repositories in memory.

    Attributes:
        visibilities: "private" or "public", by repository.
        files: content by repository and path.
        large_files: content by sha256, from the storage of large files.
        commit_messages: first lines of the commits' messages.
    """

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
    """Handler of the requests to an `UploadServer`."""

    protocol_version = "HTTP/1.1"
    server: UploadServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def read_body(self) -> bytes:
        """Read the body of the request, chunked or not."""
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
            return self.create_repository(**json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.send_json(200, {"errors": [], "warnings": []})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.send_upload_urls(json.loads(body)["objects"])
        repository, _, revision = self.path.removeprefix("/api/models/").partition("/preupload/")
        if revision:
            return self.send_upload_modes([file["path"] for file in json.loads(body)["files"]])
        repository, _, revision = self.path.removeprefix("/api/models/").partition("/commit/")
        return self.commit(repository, body) if revision else self.send_json(404)

    def create_repository(
        self, name: str, organization: str | None = None, visibility: str = "public", **_: Any
    ) -> None:
        """Create a repository; respond with status 409 if it exists."""
        full_name = f"{organization or 'me'}/{name}"
        exists = full_name in self.server.visibilities
        self.server.visibilities.setdefault(full_name, visibility)
        self.send_json(409 if exists else 200, {"url": f"{self.server.url}/{full_name}", "error": "exists"})

    def send_upload_urls(self, objects: list[dict[str, Any]]) -> None:
        """Send the URL for the upload of each large file, in the protocol of Git LFS."""
        content = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}} for item in objects
        ]
        self.send_json(200, {"transfer": "basic", "objects": content})

    def send_upload_modes(self, paths: list[str]) -> None:
        """Send the upload mode of each file: safetensors are large files."""
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        content = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.send_json(200, {"files": content})

    def commit(self, repository: str, body: bytes) -> None:
        """Add the files of a commit, which are lines of JSON, to a repository."""
        files = self.server.files.setdefault(repository, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commit_messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.large_files[value["oid"]]
        url = f"{self.server.url}/{repository}/commit/{'0' * 40}"
        self.send_json(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})


@contextlib.contextmanager
def serve_uploads() -> Iterator[UploadServer]:
    """Serve uploads until the context exits."""
    with UploadServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
