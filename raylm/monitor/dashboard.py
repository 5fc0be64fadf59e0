"""A page of a sweep that refreshes while the sweep runs, from this machine for this machine alone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from raylm.errors import UserError, duration
from raylm.monitor import heartbeat
from raylm.monitor.state import Running, at_rest, while_running
from raylm.report import html
from raylm.report.analysis import load_results
from raylm.report.reference import load_reference
from raylm.results import manifest, sweep_record
from raylm.results.folder import ELSEWHERE_FILE, STATUS_FILE
from raylm.results.rows import Results
from raylm.results.storage import Folder, Storage

HOST = "127.0.0.1"
OWN_NAMES = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""What a browser here calls it. A page from elsewhere whose name has come to mean this machine is refused."""
REFRESH_SECONDS = 2.0
SECONDS_BETWEEN_LISTINGS = 10.0
"""Of a bucket."""
SHARE_OF_DRAWING = 0.2
"""Of the time that is spent on drawing figures at most: trials may be training on the same processor."""
POLICY = "style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CHANGING = (manifest.NAME, STATUS_FILE, ELSEWHERE_FILE, sweep_record.NAME)
"""Files that what the page shows follows from."""


class Dashboard:
    """What the page shows of a results folder. Asked by several threads."""

    def __init__(self, folder: Storage) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._reference = load_reference()
        self._found: Results | None = None
        self._files: list[tuple[str, int | None]] = []
        self._version = self._drawn = self._page = ""
        self._list_after = self._draw_after = 0.0
        self._live_mark, self._nonce_mark = secrets.token_hex(), secrets.token_hex()
        """In the page as it is kept, where each answer has something of its own."""

    def live(self) -> tuple[str, str]:
        """The part of the page that changes all the time, and the version of the rest."""
        with self._lock:
            return self._live()

    def whole(self, nonce: str) -> str:
        """The page, its script with this nonce."""
        with self._lock:
            live, version = self._live()
            if version != self._drawn:
                self._draw(version)
            return self._page.replace(self._nonce_mark, nonce).replace(self._live_mark, live)

    def _live(self) -> tuple[str, str]:
        told = heartbeat.read(self._folder)
        found = self._results()
        state = told.state if told and told.alive else at_rest(found)
        words = told.words if told else "nothing runs it"
        shown = repr((self._files, dict(state.counts), sorted(one.run for one in state.running)))
        if time.monotonic() > self._draw_after:
            self._version = hashlib.sha256(shown.encode()).hexdigest()[:16]
        fragment = html.rendered("live.html", state=state, words=words, duration=duration, line=polyline)
        return fragment, self._version

    def _results(self) -> Results:
        """The rows, read again where a file has changed that they follow from."""
        if self._found is None or time.monotonic() > self._list_after:
            files = [one for one in self._folder.entries().items() if one[0].rpartition("/")[2] in CHANGING]
            if self._found is None or sorted(files) != self._files:
                self._found, self._files = load_results(self._folder.place), sorted(files)
            patience = 0 if isinstance(self._folder, Folder) else SECONDS_BETWEEN_LISTINGS
            self._list_after = time.monotonic() + patience
        return self._found

    def _draw(self, version: str) -> None:
        began, told, found = time.monotonic(), heartbeat.read(self._folder), self._results()
        self._page = html.html(
            while_running(found, told.state) if told and told.alive else found,
            self._reference,
            "dashboard.html",
            live=self._live_mark,
            nonce=self._nonce_mark,
            version=version,
            refresh_ms=int(1000 * REFRESH_SECONDS),
        )
        self._drawn = version
        self._draw_after = time.monotonic() + (time.monotonic() - began) / SHARE_OF_DRAWING


def polyline(running: Running) -> str:
    """The points of a running trial's loss in a field of 100 by 20."""
    if len(running.curve) < 2:
        return ""
    steps, losses = zip(*running.curve, strict=True)
    wide, low, high = steps[-1] - steps[0], min(losses), max(losses)
    places = [(100 * (x - steps[0]) / wide, 19 - 18 * (y - low) / ((high - low) or 1.0)) for x, y in running.curve]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


class Server(ThreadingHTTPServer):
    """Serves the page at `/`, the part of it that changes at `/live`, and nothing else."""

    daemon_threads = True

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        """Listens, to be run.

        Args:
            port: 0: any that is free.

        Raises:
            UserError: if the port cannot be had.
        """
        self.dashboard = dashboard
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            what = "is taken" if taken else f"cannot be had: {getattr(error, 'strerror', None) or error}"
            raise UserError(f"port {port} {what}; choose another one with --port") from None

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://{HOST}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "raylm", ""

    def do_GET(self) -> None:
        """Answers a request."""
        if not OWN_NAMES.fullmatch(self.headers.get("Host", "")):
            self._answer(HTTPStatus.FORBIDDEN, f"open {self.server.address}\n")
            return
        try:
            if self.path == "/":
                nonce = secrets.token_urlsafe(16)
                policy = f"default-src 'none'; script-src 'nonce-{nonce}'; connect-src 'self'; {POLICY}"
                self._answer(HTTPStatus.OK, self.server.dashboard.whole(nonce), {"Content-Security-Policy": policy})
            elif self.path == "/live":
                fragment, version = self.server.dashboard.live()
                self._answer(HTTPStatus.OK, fragment, {"Raylm-Version": version})
            else:
                self._answer(HTTPStatus.NOT_FOUND, "there is only /\n")
        except (UserError, OSError) as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")

    def _answer(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        kind = "text/html" if status is HTTPStatus.OK else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {**HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the browser has gone
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are nobody's news."""
