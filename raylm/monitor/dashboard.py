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

from raylm.errors import UserError
from raylm.monitor import heartbeat
from raylm.monitor.state import RunningTrial, apply_live_state, idle_state
from raylm.report import html
from raylm.report.analysis import load_results
from raylm.report.reference import load_reference
from raylm.results import manifest, sweep_record
from raylm.results.folder import LENGTH_EVALS_FILE, STATUS_FILE
from raylm.results.rows import Results
from raylm.results.storage import Folder, Storage
from raylm.units import format_duration

HOST = "127.0.0.1"
ALLOWED_HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""What a browser here calls it. A page from elsewhere whose name has come to mean this machine is refused."""
REFRESH_SECONDS = 2.0
LISTING_SECONDS = 10.0
"""Of a bucket."""
MAX_RENDER_FRACTION = 0.2
"""Of the time that is spent on drawing figures at most: trials may be training on the same processor."""
CONTENT_SECURITY_POLICY = (
    "style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
WATCHED_FILES = (manifest.MANIFEST_FILE, STATUS_FILE, LENGTH_EVALS_FILE, sweep_record.RECORD_FILE)
"""Files that what the page shows follows from."""


class Dashboard:
    """What the page shows of a results folder. Asked by several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._lock = storage, threading.Lock()
        self._reference = load_reference()
        self._loaded: Results | None = None
        self._files: list[tuple[str, int | None]] = []
        self._version = self._page_version = self._page = ""
        self._next_listing = self._next_render = 0.0
        self._live_placeholder, self._nonce_placeholder = secrets.token_hex(), secrets.token_hex()
        """In the page as it is kept, where each answer has something of its own."""

    def render_live(self) -> tuple[str, str]:
        """The part of the page that changes all the time, and the version of the rest."""
        with self._lock:
            return self._render_live()

    def render_page(self, nonce: str) -> str:
        """The page, its script with this nonce."""
        with self._lock:
            live, version = self._render_live()
            if version != self._page_version:
                self._update_page(version)
            return self._page.replace(self._nonce_placeholder, nonce).replace(self._live_placeholder, live)

    def _render_live(self) -> tuple[str, str]:
        told = heartbeat.read_heartbeat(self._storage)
        found = self._load_results()
        state = told.state if told and told.is_alive else idle_state(found)
        words = told.description if told else "nothing runs it"
        shown = repr((self._files, dict(state.counts), sorted(one.run for one in state.running)))
        if time.monotonic() > self._next_render:
            self._version = hashlib.sha256(shown.encode()).hexdigest()[:16]
        fragment = html.render_template(
            "live.html", state=state, words=words, duration=format_duration, line=format_polyline
        )
        return fragment, self._version

    def _load_results(self) -> Results:
        """The rows, read again where a file has changed that they follow from."""
        if self._loaded is None or time.monotonic() > self._next_listing:
            files = [one for one in self._storage.list_entries().items() if one[0].rpartition("/")[2] in WATCHED_FILES]
            if self._loaded is None or sorted(files) != self._files:
                self._loaded, self._files = load_results(self._storage.uri), sorted(files)
            patience = 0 if isinstance(self._storage, Folder) else LISTING_SECONDS
            self._next_listing = time.monotonic() + patience
        return self._loaded

    def _update_page(self, version: str) -> None:
        began, told, found = time.monotonic(), heartbeat.read_heartbeat(self._storage), self._load_results()
        self._page = html.render_html(
            apply_live_state(found, told.state) if told and told.is_alive else found,
            self._reference,
            "dashboard.html",
            live=self._live_placeholder,
            nonce=self._nonce_placeholder,
            version=version,
            refresh_ms=int(1000 * REFRESH_SECONDS),
        )
        self._page_version = version
        self._next_render = time.monotonic() + (time.monotonic() - began) / MAX_RENDER_FRACTION


def format_polyline(trial: RunningTrial) -> str:
    """The points of a running trial's loss in a field of 100 by 20."""
    if len(trial.curve) < 2:
        return ""
    steps, losses = zip(*trial.curve, strict=True)
    wide, low, high = steps[-1] - steps[0], min(losses), max(losses)
    places = [(100 * (x - steps[0]) / wide, 19 - 18 * (y - low) / ((high - low) or 1.0)) for x, y in trial.curve]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


class DashboardServer(ThreadingHTTPServer):
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
    def url(self) -> str:
        """What to open."""
        return f"http://{HOST}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    server_version, sys_version = "raylm", ""

    def do_GET(self) -> None:
        """Answers a request."""
        if not ALLOWED_HOSTS.fullmatch(self.headers.get("Host", "")):
            self._respond(HTTPStatus.FORBIDDEN, f"open {self.server.url}\n")
            return
        try:
            if self.path == "/":
                nonce = secrets.token_urlsafe(16)
                policy = (
                    f"default-src 'none'; script-src 'nonce-{nonce}'; connect-src 'self'; {CONTENT_SECURITY_POLICY}"
                )
                self._respond(
                    HTTPStatus.OK, self.server.dashboard.render_page(nonce), {"Content-Security-Policy": policy}
                )
            elif self.path == "/live":
                fragment, version = self.server.dashboard.render_live()
                self._respond(HTTPStatus.OK, fragment, {"Raylm-Version": version})
            else:
                self._respond(HTTPStatus.NOT_FOUND, "there is only /\n")
        except (UserError, OSError) as error:
            self._respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")

    def _respond(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        kind = "text/html" if status is HTTPStatus.OK else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {**SECURITY_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the browser has gone
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are nobody's news."""
