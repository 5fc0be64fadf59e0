#!/usr/bin/env python3
"""Make the pictures of README and docs anew from a results folder: `python docs/pictures.py runs/quickstart`.

Renders the report in headless Chromium as `report.png`, `report-dark.png` and `report-phone.png`, and with `--dashboard
URL` the page of a running `raylm dashboard` as `dashboard.png`. Needs Chromium and the packages of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import open_page  # noqa: E402

from raylm import load_results  # noqa: E402
from raylm.report.html import render_html  # noqa: E402


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
            await asyncio.sleep(1)  # for the first refresh of a dashboard
            height = await page.evaluate(LAST_BLOCK_END.replace("MAX", str(picture.max_height)))
            area = {"x": 0, "y": 0, "width": picture.width, "height": height, "scale": 1}
            shot = await page.send_command("Page.captureScreenshot", clip=area, captureBeyondViewport=True)
    file = folder / picture.name
    file.write_bytes(base64.b64decode(shot["data"]))
    return file


async def take_all(results_folder: str | None, dashboard_url: str | None, folder: Path) -> None:
    """Write the pictures of a results folder's report and of a dashboard, and print their files."""
    if results_folder is not None:
        with tempfile.TemporaryDirectory() as name:
            page = Path(name) / "report.html"
            page.write_text(render_html(load_results(results_folder)), encoding="utf-8")
            for picture in REPORT_PICTURES:
                print(await take_picture(picture, page.as_uri(), folder))
    if dashboard_url is not None:
        print(await take_picture(DASHBOARD_PICTURE, dashboard_url, folder))


def main() -> None:
    """Read the command line and write the pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of README and docs anew.")
    parser.add_argument("results", nargs="?", help="finished results folder, such as runs/quickstart")
    parser.add_argument("--dashboard", metavar="URL", help="address of a running `raylm dashboard`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    options = parser.parse_args()
    if options.results is None and options.dashboard is None:
        parser.error("expected a results folder, --dashboard URL, or both")
    options.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(options.results, options.dashboard, options.out))


if __name__ == "__main__":
    main()
