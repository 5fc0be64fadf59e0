"""Web page of a sweep that refreshes while the sweep runs, served to this machine only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from raylm.errors import UserError
from raylm.monitor.heartbeat import read_heartbeat
from raylm.monitor.state import RunningTrial, SweepState, apply_live_state, idle_state
from raylm.report import html
from raylm.report.page_rows import find_log
from raylm.report.reference import load_reference
from raylm.report.tables.columns import field_column
from raylm.results import manifest, sweep_record
from raylm.results.folder import LENGTH_EVALS_FILE, STATUS_FILE, load_rows
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder, Storage
from raylm.units import format_duration

HOST = "127.0.0.1"
ALLOWED_HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""Host headers of a browser on this machine. Any other is refused: DNS rebinding lets a foreign page resolve its own
host name to this machine."""
REFRESH_SECONDS = 2.0
LISTING_SECONDS = 10.0
"""Minimum time between two listings of a bucket."""
MAX_RENDER_FRACTION = 0.2
"""Maximum fraction of time spent on drawing figures: trials may train on the same processor."""
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
WATCHED_FILES = (manifest.MANIFEST_FILE, STATUS_FILE, LENGTH_EVALS_FILE, sweep_record.RECORD_FILE)
"""Files whose changes change the page."""


@dataclass(frozen=True)
class DashboardView:
    """Content of the page at one moment."""

    results: SweepRows
    """Rows, with the statuses `running` and `queued` while a command runs the sweep."""
    state: SweepState
    description: str
    """Process that runs the sweep, or ran it."""


class Dashboard:
    """Renders the page of a results folder. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._lock = storage, threading.Lock()
        self._reference = load_reference()
        self._results: SweepRows | None = None
        self._files: list[tuple[str, int | None]] = []
        self._version = self._page_version = self._page = ""
        self._next_listing = self._next_render = 0.0
        self._live_placeholder, self._nonce_placeholder = secrets.token_hex(), secrets.token_hex()
        """Texts in the cached page that each response replaces by its own."""

    def render_live(self) -> tuple[str, str]:
        """Return the HTML of the section that always changes, and the version of the rest of the page."""
        with self._lock:
            view = self._load_view()
            return _render_live_section(view), self._version

    def render_page(self, nonce: str) -> str:
        """Return the page; its script has the given nonce."""
        with self._lock:
            view = self._load_view()
            if self._version != self._page_version:
                self._update_page(view.results)
            live = _render_live_section(view)
            return self._page.replace(self._nonce_placeholder, nonce).replace(self._live_placeholder, live)

    def read_log(self, path: str) -> str | None:
        """Return the log of a trial, by its path on this server; None if no trial has it, or it is gone."""
        with self._lock:
            names = {f"/{quote(name)}": name for row in self._load_results().rows if (name := find_log(row))}
        with contextlib.suppress(FileNotFoundError):
            return self._storage.read(names[path]) if path in names else None
        return None

    def _load_view(self) -> DashboardView:
        """Return the content now; set the version of the page, unless it was drawn a short time ago."""
        heartbeat = read_heartbeat(self._storage)  # before the rows: they are final once there is none
        results = self._load_results()
        if heartbeat is None or not heartbeat.is_alive or heartbeat.state is None:
            description = heartbeat.description if heartbeat else "not running"
            view = DashboardView(results, idle_state(results), description)
        else:
            results = apply_live_state(results, heartbeat.state)
            view = DashboardView(results, heartbeat.state, heartbeat.description)
        if time.monotonic() > self._next_render:
            running = sorted(trial.run_name for trial in view.state.running)
            content = repr((self._files, dict(view.state.counts), running))
            self._version = hashlib.sha256(content.encode()).hexdigest()[:16]
        return view

    def _load_results(self) -> SweepRows:
        """Return the rows; read them again if one of their files has changed.

        Raises:
            UserError: if the record of the sweep is damaged or gone.
        """
        if self._results is None or time.monotonic() > self._next_listing:
            entries = self._storage.list_entries().items()
            files = sorted(entry for entry in entries if entry[0].rpartition("/")[2] in WATCHED_FILES)
            if self._results is None or files != self._files:
                record = sweep_record.load(self._storage)
                if record is None:
                    raise UserError(f"{self._storage.uri} has no {sweep_record.RECORD_FILE} any more")
                self._results, self._files = load_rows(self._storage, record.trials, record), files
            interval = 0 if isinstance(self._storage, Folder) else LISTING_SECONDS
            self._next_listing = time.monotonic() + interval
        return self._results

    def _update_page(self, results: SweepRows) -> None:
        started = time.monotonic()
        self._page = html.render_html(
            results,
            self._reference,
            "dashboard.html",
            live=self._live_placeholder,
            nonce=self._nonce_placeholder,
            version=self._version,
            refresh_ms=int(1000 * REFRESH_SECONDS),
        )
        self._page_version = self._version
        self._next_render = time.monotonic() + (time.monotonic() - started) / MAX_RENDER_FRACTION


def _render_live_section(view: DashboardView) -> str:
    return html.render_template(
        "live.html",
        state=view.state,
        description=view.description,
        format_duration=format_duration,
        format_polyline=format_polyline,
        field_heading=lambda name: field_column(name).name,
    )


def format_polyline(trial: RunningTrial) -> str:
    """Return the loss curve of a running trial as points of an SVG polyline, 100 wide and 20 high."""
    if len(trial.curve) < 2:
        return ""
    steps, losses = zip(*trial.curve, strict=True)
    width, low, high = steps[-1] - steps[0], min(losses), max(losses)
    points = [(100 * (x - steps[0]) / width, 19 - 18 * (y - low) / ((high - low) or 1.0)) for x, y in trial.curve]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


class DashboardServer(ThreadingHTTPServer):
    """HTTP server of the page at `/`, its changing section at `/live`, and the logs of trials."""

    daemon_threads = True

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        """Listen on a port; `serve_forever` answers requests.

        Args:
            dashboard: the page to serve.
            port: TCP port; 0 for any free one.

        Raises:
            UserError: if it cannot listen on the port.
        """
        self.dashboard = dashboard
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "is in use" if in_use else f"cannot be used: {getattr(error, 'strerror', None) or error}"
            raise UserError(f"port {port} {reason}; choose another one with --port") from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    server_version, sys_version = "raylm", ""

    def do_GET(self) -> None:
        """Answer a request."""
        if not ALLOWED_HOSTS.fullmatch(self.headers.get("Host", "")):
            self._respond(HTTPStatus.FORBIDDEN, f"open {self.server.url}\n")
            return
        try:
            if self.path == "/":
                nonce = secrets.token_urlsafe(16)
                headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY.format(nonce=nonce)}
                self._respond(HTTPStatus.OK, self.server.dashboard.render_page(nonce), headers)
            elif self.path == "/live":
                section, version = self.server.dashboard.render_live()
                self._respond(HTTPStatus.OK, section, {"Raylm-Version": version})
            elif (log := self.server.dashboard.read_log(self.path)) is not None:
                self._respond(HTTPStatus.OK, log, content_type="text/plain")
            else:
                self._respond(HTTPStatus.NOT_FOUND, "the only page is /\n")
        except (UserError, OSError) as error:
            self._respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")

    def _respond(
        self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None, content_type: str = "text/html"
    ) -> None:
        content = text.encode()
        content_type = content_type if status is HTTPStatus.OK else "text/plain"
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {**SECURITY_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the browser has closed the connection
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""
