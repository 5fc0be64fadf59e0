#!/usr/bin/env python3
"""Script that makes the pictures of README and docs anew: `python docs/pictures.py runs/quickstart`.

Renders the report of a finished results folder in headless Chromium as `report.png`, `report-dark.png` and
`report-phone.png`. `dashboard.png` is the page of `raylm dashboard` for a copy of the folder in which two trials are
done and two are running, with the steps, losses and rates that its checkpoints recorded. Needs Chromium and the
packages of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import open_page  # noqa: E402

from raylm import load_results  # noqa: E402
from raylm.monitor.dashboard import Dashboard, DashboardServer  # noqa: E402
from raylm.monitor.state import SweepMonitor  # noqa: E402
from raylm.report.html import render_html  # noqa: E402
from raylm.results.heartbeat import Heartbeat  # noqa: E402
from raylm.results.progress import StepMetrics  # noqa: E402


@dataclass(frozen=True)
class Picture:
    """A picture of a page. Lengths are CSS pixels."""

    name: str
    width: int
    max_height: int
    """The page is cut at the end of its last block above this height."""
    is_dark: bool = False
    pixels_per_unit: float = 1.0
    is_phone: bool = False


REPORT_PICTURES = (
    Picture("report.png", 1140, 1700),
    Picture("report-dark.png", 1140, 1400, is_dark=True),
    Picture("report-phone.png", 390, 950, pixels_per_unit=2.0, is_phone=True),
)
DASHBOARD_PICTURE = Picture("dashboard.png", 1140, 1400)

LAST_BLOCK_END = """
(() => {
  const ends = [...document.querySelectorAll("tr, table + p, .scroll + p, .panels, pre")]
    .map((block) => Math.ceil(block.getBoundingClientRect().bottom + window.scrollY) + 12);
  const figures = [...document.querySelectorAll(".panels")].map((block) => block.getBoundingClientRect());
  const isWhole = (end) => !figures.some((figure) => figure.top < end - 12 && end - 12 < figure.bottom);
  return Math.max(...ends.filter((end) => end <= MAX && isWhole(end)), MAX / 2);
})()
"""
"""JavaScript for the end of the last block of a page that ends above MAX."""


async def take_picture(picture: Picture, url: str, folder: Path) -> Path:
    """Write the picture of a page into a folder; return its file."""
    with tempfile.TemporaryDirectory() as profile:
        async with open_page("about:blank", Path(profile), picture.width, picture.max_height) as page:
            await page.send_command(
                "Emulation.setDeviceMetricsOverride",
                width=picture.width,
                height=picture.max_height,
                deviceScaleFactor=picture.pixels_per_unit,
                mobile=picture.is_phone,
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if picture.is_dark else "light"}
            await page.send_command("Emulation.setEmulatedMedia", features=[scheme])
            await page.send_command("Page.navigate", url=url)
            await page.wait_for_text("Sweep file")
            await asyncio.sleep(4 if picture is DASHBOARD_PICTURE else 0.5)  # until a dashboard has shown the heartbeat
            height = await page.evaluate(LAST_BLOCK_END.replace("MAX", str(picture.max_height)))
            area = {"x": 0, "y": 0, "width": picture.width, "height": height, "scale": 1}
            shot = await page.send_command("Page.captureScreenshot", clip=area, captureBeyondViewport=True)
    file = folder / picture.name
    file.write_bytes(base64.b64decode(shot["data"]))
    return file


@contextlib.contextmanager
def serve_unfinished(results_folder: Path, folder: Path) -> Iterator[str]:
    """Yield the address of a dashboard for a copy in which two trials are done and two are running."""
    finished = load_results(str(results_folder))
    assert len(finished.rows) >= 4, f"{results_folder} has fewer than four trials"
    running, queued = finished.rows[2:4], finished.rows[4:]
    copy = folder / results_folder.name
    shutil.copytree(results_folder, copy)
    for row in (*running, *queued):
        for trial_folder in copy.glob(f"launch-*/{row.config.run_name}"):
            shutil.rmtree(trial_folder)
    results = load_results(str(copy))
    monitor = SweepMonitor(results_folder.name, results, len(results.rows), lambda trial: 1.0)
    for row, part in zip(running, (0.7, 0.4), strict=True):
        assert row.latest_checkpoint is not None
        progress = row.latest_checkpoint.progress
        rate = progress.tokens_seen / progress.training_seconds
        monitor.on_trial_start(row.config)
        for step, loss in progress.curve[: int(len(progress.curve) * part)]:
            tokens = progress.tokens_seen * step // progress.total_steps
            monitor.on_step(row.config, StepMetrics(step, progress.total_steps, loss, tokens, rate))
    with Heartbeat(results.storage) as heartbeat, DashboardServer(Dashboard(results.storage), 0) as server:
        heartbeat.report(monitor.snapshot)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


async def take_all(results_folder: Path, folder: Path) -> None:
    """Write the pictures of a results folder's report and dashboard, and print their files."""
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "report.html"
        page.write_text(render_html(load_results(str(results_folder))), encoding="utf-8")
        for picture in REPORT_PICTURES:
            print(await take_picture(picture, page.as_uri(), folder))
        with serve_unfinished(results_folder, Path(name)) as url:
            print(await take_picture(DASHBOARD_PICTURE, url, folder))


def main() -> None:
    """Read the command line and write the pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of README and docs anew.")
    parser.add_argument(
        "results", type=Path, help="finished results folder of four trials or more, such as runs/quickstart"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(options.results, options.out))


if __name__ == "__main__":
    main()
