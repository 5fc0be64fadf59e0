"""S3 server on this machine, and a proxy for it that answers some requests with 503."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from oracle import find_free_port, is_port_open, wait_for

BUCKET = "tests"
SECRET_KEY = "canary-secret-key-of-the-bucket"
S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class S3Server:
    """Running S3 server."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of a process that uses it."""
        return {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": self.url}


@contextlib.contextmanager
def serve_s3(log_path: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Serve S3 with one bucket until the context exits."""
    port = find_free_port(host)
    url = f"http://{host}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with log_path.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: is_port_open(host, port))
            client = boto3.client(
                "s3",
                endpoint_url=url,
                aws_access_key_id=S3_CREDENTIALS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=SECRET_KEY,
                region_name="us-east-1",
            )
            client.create_bucket(Bucket=BUCKET)
            yield S3Server(process, url)
        finally:
            process.kill()


@dataclass
class BusyProxy:
    """Proxy that answers every n-th request with 503 SlowDown, as a busy S3 does."""

    url: str
    refuse_every: int
    num_refused: int = 0
    """Requests answered with 503."""
    num_passed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def should_refuse(self) -> bool:
        """Count a request; return whether to refuse it."""
        with self.lock:
            refused = (self.num_refused + self.num_passed + 1) % self.refuse_every == 0
            self.num_refused, self.num_passed = self.num_refused + refused, self.num_passed + (not refused)
        return refused


@contextlib.contextmanager
def serve_busy_proxy(server: S3Server, refuse_every: int) -> Iterator[BusyProxy]:
    """Serve a proxy for an S3 server until the context exits."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.read_body()
            if proxy.should_refuse():
                self.send_reply(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
                return
            request = urllib.request.Request(server.url + self.path, body or None, method=self.command)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding", "expect"):
                    request.add_header(name, value)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.send_reply(answer.status, dict(answer.headers), answer.read())
            except urllib.error.HTTPError as error:
                self.send_reply(error.code, dict(error.headers), error.read())

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def send_reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815  (the names that http.server calls)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        proxy = BusyProxy(f"http://127.0.0.1:{listening.server_address[1]}", refuse_every)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield proxy
        listening.shutdown()


@contextlib.contextmanager
def set_environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of this process until the context exits."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
