"""Dashboard of a sweep: a browser follows it while the sweep runs, and nobody else can read it."""

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
from pages import PageReader, save_checkpoint, write_record

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.monitor import dashboard
from raylm.monitor.dashboard import Dashboard, DashboardServer, format_polyline
from raylm.monitor.state import RunningTrial, SweepMonitor
from raylm.report import html
from raylm.results import heartbeat as heartbeats
from raylm.results import sweep_record
from raylm.results.folder import write_final_status
from raylm.results.heartbeat import Heartbeat
from raylm.results.progress import StepMetrics
from raylm.results.rows import DONE, FAILED, PENDING, QUEUED, SweepRows
from raylm.results.storage import Folder

MODEL_WITH_MARKUP = "<b>&odd"
TRIALS = [
    TrialConfig.from_record({"dataset": "imdb", "model": MODEL_WITH_MARKUP, "context_length": 64 * 2**n})
    for n in range(4)
]
RUNS = [trial.run_name for trial in TRIALS]


@pytest.fixture
def results(tmp_path: Path) -> SweepRows:
    """A finished row, a failed one, and two pending."""
    folder = tmp_path / "my-sweep"
    save_checkpoint(folder, TRIALS[0], 3.0)
    write_final_status(Folder(folder), "launch-001", TRIALS[1], FAILED, "ValueError: no")
    return write_record(folder, TRIALS)


@pytest.fixture
def server(results: SweepRows) -> Iterator[DashboardServer]:
    with DashboardServer(Dashboard(results.storage), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    server: DashboardServer, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode(), dict(response.headers)


def test_page_is_the_report_with_the_live_section_above(server: DashboardServer) -> None:
    status, text, headers = request(server, "/")
    reader = PageReader(text)
    assert status == 200 and reader.tags.count("script") == 2 and "b" not in reader.tags
    (log,) = reader.urls
    assert log == f"launch-001/{RUNS[0]}/log.txt"
    words = " ".join(reader.text.split())
    assert f"1 done 2 {PENDING} 1 failed 2 of 4 trials finished; not running" in words
    assert f"{RUNS[1]} failed: ValueError: no" in words and "Loss curves" in words
    assert "script-src 'nonce-" in headers["Content-Security-Policy"] and "*" not in headers["Content-Security-Policy"]
    nonces = {request(server, "/")[2]["Content-Security-Policy"] for _ in range(2)}
    assert len(nonces) == 2, "each response has its own nonce"


def test_log_of_a_trial_is_served_as_text(server: DashboardServer, results: SweepRows) -> None:
    path = f"launch-001/{RUNS[0]}/log.txt"
    Path(results.storage.uri, path).write_text("<script>step 1</script>", encoding="utf-8")
    status, text, headers = request(server, f"/{path}")
    assert (status, text, headers["Content-Type"]) == (200, "<script>step 1</script>", "text/plain; charset=utf-8")
    Path(results.storage.uri, path).unlink()
    assert request(server, f"/{path}")[0] == 404


@pytest.mark.parametrize(
    ("path", "host", "method", "status"),
    [
        ("/", "localhost:9000", "GET", 200),  # through a tunnel
        ("/live", "[::1]:9000", "GET", 200),
        ("/", "attacker.example", "GET", 403),
        ("/live", "127.0.0.1.attacker.example:80", "GET", 403),
        ("/", "", "GET", 403),
        ("/sweep.json", None, "GET", 404),
        (f"/launch-001/{RUNS[0]}/../../sweep.json", None, "GET", 404),
        (f"/launch-001/{RUNS[0]}/checkpoint_000000/raylm.json", None, "GET", 404),
        (f"/launch-001/{RUNS[0]}/log.txt", "attacker.example", "GET", 403),
        ("/../my-sweep/sweep.json", None, "GET", 404),
        ("/", None, "POST", 501),
        ("/", None, "PUT", 501),
        ("/", None, "DELETE", 501),
    ],
)
def test_server_answers_only_its_own_host_and_paths(
    server: DashboardServer, path: str, host: str | None, method: str, status: int
) -> None:
    response_status, text, _ = request(server, path, host, method)
    assert response_status == status and (status == 200 or "my-sweep" not in text)


def test_server_listens_on_the_loopback_interface_only(server: DashboardServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match=f"port {server.server_address[1]} is in use; choose another one with --port"):
        DashboardServer(server.dashboard, server.server_address[1])


@pytest.mark.parametrize(("content", "message"), [("{", "sweep.json is damaged"), (None, "has no sweep.json any more")])
def test_damaged_or_removed_results_are_reported(
    server: DashboardServer, results: SweepRows, content: str | None, message: str
) -> None:
    request(server, "/")
    if content is None:
        results.storage.remove("sweep.json")
    else:
        results.storage.write("sweep.json", content)
    status, text, _ = request(server, "/live")
    assert status == 503 and message in text


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """Return a list that grows with each call of a module's function, by its first argument."""
    calls: list[Any] = []
    function = getattr(module, name)

    def counted(argument: Any, *arguments: Any, **keywords: Any) -> Any:
        calls.append(argument)
        return function(argument, *arguments, **keywords)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_figures_are_drawn_again_only_if_rows_have_changed(results: SweepRows, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_calls(monkeypatch, html, "render_html")
    monkeypatch.setattr(dashboard, "MAX_RENDER_FRACTION", 1e9)
    page = Dashboard(results.storage)
    first = page.render_page("x")
    time.sleep(0.01)
    assert page.render_page("x") == first and len(drawn) == 1
    save_checkpoint(Path(results.storage.uri), TRIALS[2], 2.0)
    assert RUNS[2] in page.render_page("x") and len(drawn) == 2 and "2 done" in page.render_live()[0]


def test_page_reads_live_json_once_and_unchanged_results_never_again(
    results: SweepRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeats = count_calls(monkeypatch, dashboard, "read_heartbeat")
    records = count_calls(monkeypatch, sweep_record, "load")
    page = Dashboard(results.storage)
    page.render_page("x")
    assert len(heartbeats) == 1
    num_reads = len(records)
    page.render_page("x")
    page.render_live()
    assert len(heartbeats) == 3 and len(records) == num_reads


def test_polyline_fills_its_field() -> None:
    curve = ((10, 5.0), (20, 4.0), (30, 3.0))
    assert format_polyline(RunningTrial("run", 0.0, None, curve)) == "0.0,1.0 50.0,10.0 100.0,19.0"
    assert format_polyline(RunningTrial("run", 0.0, None, curve[:1])) == ""


def test_browser_follows_a_sweep_without_a_reload(
    server: DashboardServer, results: SweepRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(dashboard, "MAX_RENDER_FRACTION", 1.0)
    monitor = SweepMonitor("my-sweep", results, 4, lambda trial: 1.0)

    async def follow() -> None:
        async with open_page(server.url, tmp_path / "profile") as page:
            await page.wait_for_text(f"2 {QUEUED}", "#live")
            await page.wait_for_text(f"{RUNS[2]} ({QUEUED})", "main")
            search = "document.querySelector('input[type=search]')"
            await page.evaluate(f"{search}.value = 'context_length<=256'; {search}.dispatchEvent(new Event('input'))")
            monitor.on_trial_start(TRIALS[2])
            monitor.on_step(TRIALS[2], StepMetrics(11, 40, 4.125, 1000, 250.0))
            monitor.on_step(TRIALS[2], StepMetrics(12, 40, 4.0, 1000, 250.0))
            await page.wait_for_text("12/40", "#live")
            await page.wait_for_text(f"{RUNS[2]} (running)", "main")
            assert "250" in await page.read_text("#live") and "4.000" in await page.read_text("#live")
            monitor.on_evaluate(TRIALS[2], {"step": 40, "adj_val_loss": 2.4})
            save_checkpoint(Path(results.storage.uri), TRIALS[2], 2.0)
            monitor.on_trial_end(TRIALS[2], DONE, "")
            await page.wait_for_text("Best on imdb so far: adj val loss 2.400", "#live")
            await page.wait_for_text("2.40", ".best")
            await page.wait_for_text("2 done", "header")
            assert await page.read_text("#shown") == "3 of 4 rows"  # the filter outlives each refresh
            assert await page.evaluate("document.querySelectorAll('.controls').length") == 1
            assert page.requested_urls and all(url.startswith(server.url) for url in page.requested_urls)
            assert page.console_errors == []
            server.shutdown()
            server.server_close()
            css_class = "document.getElementById('live').className"
            while (await page.send_command("Runtime.evaluate", expression=css_class))["result"]["value"] != "stale":
                await asyncio.sleep(0.1)

    with Heartbeat(results.storage) as heartbeat:
        heartbeat.report(monitor.snapshot)
        asyncio.run(follow())
