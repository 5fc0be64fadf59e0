"""The page of a sweep: seen in a real browser while the sweep goes on, and closed to everyone else."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import open_page
from test_html import Reader, made, save

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.monitor import dashboard, heartbeat
from raylm.monitor.dashboard import Dashboard, DashboardServer, format_polyline
from raylm.monitor.state import RunningTrial, SweepMonitor
from raylm.report import html as page
from raylm.results import folder as results
from raylm.results.progress import StepMetrics
from raylm.results.rows import DONE, FAILED, Results
from raylm.results.storage import Folder

ODD = "<b>&odd"
TRIALS = [TrialConfig.from_record({"dataset": "imdb", "model": ODD, "context_length": 64 * 2**n}) for n in range(4)]
RUNS = [trial.run_name for trial in TRIALS]


@pytest.fixture
def found(tmp_path: Path) -> Results:
    """A row that is done, one that has failed, two to be run."""
    folder = tmp_path / "my-sweep"
    save(folder, TRIALS[0], 3.0)
    results.write_final_status(Folder(folder), "launch-001", TRIALS[1], FAILED, "ValueError: no")
    return made(folder, TRIALS)


@pytest.fixture
def server(found: Results) -> Iterator[DashboardServer]:
    with DashboardServer(Dashboard(found.storage), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(
    server: DashboardServer, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.headers)


def test_the_page_is_the_report_with_what_runs_above_it(server: DashboardServer) -> None:
    status, text, headers = ask(server, "/")
    reader = Reader(text)
    assert status == 200 and reader.tags.count("script") == 1 and "b" not in reader.tags
    assert all(address.startswith("data:") for address in reader.addresses)
    words = " ".join(reader.words.split())
    assert "1 done 2 missing 1 failed 2 of 4 trials ended; nothing runs it" in words
    assert f"{RUNS[1]} failed: ValueError: no" in words and "Loss curves" in words
    assert "script-src 'nonce-" in headers["Content-Security-Policy"] and "*" not in headers["Content-Security-Policy"]
    nonces = {ask(server, "/")[2]["Content-Security-Policy"] for _ in range(2)}
    assert len(nonces) == 2, "an answer has a nonce of its own"


@pytest.mark.parametrize(
    ("path", "host", "method", "status"),
    [
        ("/", "localhost:9000", "GET", 200),  # through a tunnel
        ("/live", "[::1]:9000", "GET", 200),
        ("/", "attacker.example", "GET", 403),
        ("/live", "127.0.0.1.attacker.example:80", "GET", 403),
        ("/", "", "GET", 403),
        ("/sweep.json", None, "GET", 404),
        ("/../my-sweep/sweep.json", None, "GET", 404),
        ("/", None, "POST", 501),
        ("/", None, "PUT", 501),
        ("/", None, "DELETE", 501),
    ],
)
def test_nothing_else_is_served_and_to_nobody_else(
    server: DashboardServer, path: str, host: str | None, method: str, status: int
) -> None:
    answer, text, _ = ask(server, path, host, method)
    assert answer == status and (status == 200 or "my-sweep" not in text)


def test_it_listens_on_this_machine_alone(server: DashboardServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match=f"port {server.server_address[1]} is taken; choose another one with --port"):
        DashboardServer(server.dashboard, server.server_address[1])


def test_a_results_folder_that_is_damaged_meanwhile_is_told_of(server: DashboardServer, found: Results) -> None:
    ask(server, "/")
    found.storage.write("sweep.json", "{")
    status, text, _ = ask(server, "/live")
    assert status == 503 and "sweep.json is damaged" in text


def test_figures_are_drawn_again_only_where_rows_have_changed(found: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Results] = []

    def draw(results: Results, *arguments: Any, **named: Any) -> str:
        drawn.append(results)
        return html(results, *arguments, **named)

    html = page.render_html
    monkeypatch.setattr(page, "html", draw)
    monkeypatch.setattr(dashboard, "SHARE_OF_DRAWING", 1e9)
    shown = Dashboard(found.storage)
    first = shown.render_page("x")
    time.sleep(0.01)
    assert shown.render_page("x") == first and len(drawn) == 1
    save(Path(found.storage.uri), TRIALS[2], 2.0)
    assert RUNS[2] in shown.render_page("x") and len(drawn) == 2 and "2 done" in shown.render_live()[0]


def test_a_curve_fills_its_field() -> None:
    curve = ((10, 5.0), (20, 4.0), (30, 3.0))
    assert format_polyline(RunningTrial("run", 0.0, None, curve)) == "0.0,1.0 50.0,10.0 100.0,19.0"
    assert format_polyline(RunningTrial("run", 0.0, None, curve[:1])) == ""


def test_a_browser_follows_a_sweep_without_being_reloaded(
    server: DashboardServer, found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.1)
    monkeypatch.setattr(dashboard, "SHARE_OF_DRAWING", 1.0)
    watch = SweepMonitor("my-sweep", found, 4, lambda trial: 1.0)

    async def follow() -> None:
        async with open_page(server.url, tmp_path / "profile") as seen:
            await seen.wait_for_text("2 waiting", "#live")
            await seen.wait_for_text(f"{RUNS[2]} (waiting)", "main")
            watch.on_trial_start(TRIALS[2])
            watch.on_step(TRIALS[2], StepMetrics(11, 40, 4.125, 1000, 250.0))
            watch.on_step(TRIALS[2], StepMetrics(12, 40, 4.0, 1000, 250.0))
            await seen.wait_for_text("12/40", "#live")
            await seen.wait_for_text(f"{RUNS[2]} (running)", "main")
            assert "250" in await seen.read_text("#live") and "4.000" in await seen.read_text("#live")
            watch.on_evaluate(TRIALS[2], {"adj_val_loss": 2.4})
            save(Path(found.storage.uri), TRIALS[2], 2.0)
            watch.on_trial_end(TRIALS[2], DONE, "")
            await seen.wait_for_text("Best on imdb so far: adj val loss 2.400", "#live")
            await seen.wait_for_text("2.40", ".best")
            await seen.wait_for_text("2 done", "header")
            assert seen.requested_urls and all(
                address.startswith((server.url, "data:image/svg+xml;")) for address in seen.requested_urls
            )
            assert seen.console_errors == []
            server.shutdown()
            server.server_close()
            stale = "document.getElementById('live').className"
            while (await seen.send_command("Runtime.evaluate", expression=stale))["result"]["value"] != "stale":
                await asyncio.sleep(0.1)

    with heartbeat.Heartbeat(found.storage, watch):
        asyncio.run(follow())
