"""Script of report.html in a real browser: sort, filter, highlight, hide, brush, download; on a phone, in the dark."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from browser import Page, open_page
from pages import save_checkpoint, write_record

from raylm.config.trial import TrialConfig
from raylm.report.html import write_html

TRIALS = [
    TrialConfig(dataset="imdb", model=model, context_length=length, learning_rate=rate)
    for model, length, rate in itertools.product(("gpt2", "gpt2-medium"), (256, 512), (1e-4, 1e-5))
]
LOSSES = [3.701, 3.699, 3.5, 3.4, 3.3, 3.32, 3.1, 3.2]
ROWS = "[...document.querySelectorAll('.results tbody tr:not([hidden])')].map((row) => row.dataset.trials)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of eight trials, with its report."""
    path = tmp_path_factory.mktemp("page") / "demo"
    for trial, loss in zip(TRIALS, LOSSES, strict=True):
        save_checkpoint(path, trial, loss)
        (path / "launch-001" / trial.run_name / "log.txt").write_text(f"log of {trial.run_name}")
    write_html(write_record(path, TRIALS))
    return path


def browse(folder: Path, tmp_path: Path, steps: Callable[[Page], Awaitable[None]], width: int = 1280) -> None:
    """Open the report in a browser, take some steps, and assert that its console shows no error."""

    async def run() -> None:
        async with open_page((folder / "report.html").as_uri(), tmp_path / "profile", width) as page:
            await page.wait_for_text("Sweep file")
            await steps(page)
            assert page.console_errors == []

    asyncio.run(run())


def by_loss(*, reverse: bool = False) -> list[str]:
    """Return the ids of the trials by val loss."""
    pairs = sorted(zip(LOSSES, TRIALS, strict=True), key=lambda pair: pair[0], reverse=reverse)
    return [trial.id for _, trial in pairs]


def test_rows_are_sorted_filtered_and_downloaded(folder: Path, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        original = await page.evaluate(ROWS)
        heading = "document.querySelector('th[data-key=val_loss] button')"
        await page.evaluate(f"{heading}.focus()")
        await page.evaluate(f"{heading}.click()")
        assert await page.evaluate(ROWS) == by_loss()  # by full precision: two losses are 3.70 in the table
        assert await page.evaluate(f"{heading}.parentElement.ariaSort") == "ascending"
        await page.evaluate(f"{heading}.click()")
        assert await page.evaluate(ROWS) == by_loss(reverse=True)

        search = "document.querySelector('input[type=search]')"
        await page.evaluate(f"{search}.value = 'gpt2-medium val_loss<3.31'; {search}.dispatchEvent(new Event('input'))")
        assert await page.evaluate(ROWS) == [TRIALS[4].id, TRIALS[7].id, TRIALS[6].id]
        assert await page.read_text("#shown") == "3 of 8 rows"
        faded = await page.evaluate("document.querySelectorAll('[data-figure=loss-curves] .mark.out').length")
        assert faded == 2 * 5  # training and val loss of each hidden trial

        await page.send_command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        await page.evaluate("[...document.querySelectorAll('.controls button')].at(-1).click()")
        file = tmp_path / "my-sweep.csv"
        while not file.exists():
            await asyncio.sleep(0.05)
        rows = list(csv.DictReader(file.read_text().splitlines()))
        assert [float(row["val_loss"]) for row in rows] == [3.3, 3.2, 3.1]
        assert [row["run"] for row in rows] == [TRIALS[4].run_name, TRIALS[7].run_name, TRIALS[6].run_name]

        await page.evaluate(f"{search}.value = ''; {search}.dispatchEvent(new Event('input'))")
        await page.evaluate(f"{heading}.click()")
        assert await page.evaluate(ROWS) == original

    browse(folder, tmp_path, steps)


def test_rows_and_lines_highlight_each_other_and_open_their_config(folder: Path, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        trial, run = TRIALS[3].id, TRIALS[3].run_name
        row = f"document.querySelector('tr[data-trials={json.dumps(trial)}]')"
        x, y = await page.evaluate(f"(({{x, y}}) => [x + 20, y + 5])({row}.getBoundingClientRect())")
        await page.move_mouse(x, y)
        highlighted = "[...new Set([...document.querySelectorAll('.mark.on')].map((mark) => mark.dataset.trials))]"
        assert await page.evaluate(highlighted) == [trial]
        mark = f"document.querySelector('[data-figure=loss-curves] .mark[data-trials={json.dumps(trial)}] path')"
        await page.evaluate(f"{mark}.scrollIntoView({{block: 'center'}})")
        point = f"{mark}.getPointAtLength(5).matrixTransform({mark}.getScreenCTM())"
        x, y = await page.evaluate(f"(({{x, y}}) => [x, y])({point})")
        await page.move_mouse(x, y)
        assert await page.evaluate("[...document.querySelectorAll('tr.on')].map((row) => row.dataset.trials)") == [
            trial
        ]
        await page.drag((x, y), (x, y))
        assert await page.evaluate(f"{row}.querySelector('details').open")
        details = await page.evaluate(f"{row}.querySelector('details p').textContent")
        assert "learning rate 1e-05" in details and "context length 512" in details
        links = await page.evaluate(f"[...{row}.querySelectorAll('a')].map((link) => link.getAttribute('href'))")
        assert links == [f"launch-001/{run}/log.txt", f"launch-001/{run}/checkpoint_000000/"]
        assert all((folder / link).exists() for link in links)

    browse(folder, tmp_path, steps)


def test_legend_hides_lines_by_mouse_and_keyboard(folder: Path, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        entry = "document.querySelector('[data-figure=loss-curves] .legend[role=button]')"
        hidden = "[...document.querySelectorAll('.mark.off')].map((mark) => mark.dataset.trials)"
        await page.evaluate(f"{entry}.dispatchEvent(new MouseEvent('click'))")
        assert await page.evaluate(hidden) == [TRIALS[0].id] * 2
        assert await page.evaluate(f"{entry}.ariaPressed") == "false"
        await page.evaluate(f"{entry}.focus()")
        await page.press_key("Enter")
        assert await page.evaluate(hidden) == []

    browse(folder, tmp_path, steps)


def test_brush_of_an_axis_filters_rows(folder: Path, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.evaluate("document.querySelector('[data-figure=parallel-coordinates]').scrollIntoView()")
        axis = "[...document.querySelectorAll('.handle')].at(-1).getBoundingClientRect()"  # the loss, highest on top
        x, top, height = await page.evaluate(f"(({{x, y, width, height}}) => [x + width / 2, y, height])({axis})")
        await page.drag((x, top + 1), (x, top + 0.4 * height))
        shown = await page.evaluate(ROWS)
        assert shown == [trial.id for trial, loss in zip(TRIALS, LOSSES, strict=True) if loss > 3.47]
        await page.drag((x, top + 1), (x, top + 1))
        assert len(await page.evaluate(ROWS)) == len(TRIALS)

    browse(folder, tmp_path, steps)


def test_phone_shows_run_and_losses_without_scrolling_sideways(folder: Path, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.send_command(
            "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True
        )
        elements = "[...document.querySelectorAll('.results td, h1, .controls')]"
        assert max(await page.evaluate(f"{elements}.map((each) => each.getBoundingClientRect().right)")) <= 390
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        text = await page.read_text(".results tbody tr")
        assert TRIALS[0].run_name in text and "3.70" in text

    browse(folder, tmp_path, steps)


def test_text_has_contrast_on_light_and_dark_pages(folder: Path, tmp_path: Path) -> None:
    """At least 4.5 to 1, the AA level of WCAG 2, of text, links and headings."""

    def luminance(color: str) -> float:
        channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    async def steps(page: Page) -> None:
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            await page.send_command("Emulation.setEmulatedMedia", features=[feature])
            color_of = "(name) => getComputedStyle(document.querySelector(name)).color"
            colors = await page.evaluate(f"['body', '.quiet', 'a', 'th', 'td', 'dt'].map({color_of})")
            paper = luminance(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (paper > 0.5) == (scheme == "light")
            for color in colors:
                light, dark = max(paper, luminance(color)), min(paper, luminance(color))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, color)

    browse(folder, tmp_path, steps)
