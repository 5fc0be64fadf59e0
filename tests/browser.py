"""Headless browser for tests, through the Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_SECONDS = 60.0


class Page:
    """A page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._message_ids = socket, itertools.count(1)
        self.requested_urls: list[str] = []
        self.console_errors: list[str] = []
        """Messages of the page's console, and errors of its scripts."""

    async def send_command(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events that arrive before it are recorded."""
        message_id = next(self._message_ids)
        await self._socket.send_json({"id": message_id, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), TIMEOUT_SECONDS)
            if message.get("id") == message_id:
                assert "error" not in message, message
                return message["result"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested_urls.append(message["params"]["request"]["url"])
            elif message["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.console_errors.append(str(message["params"]))

    async def evaluate(self, code: str) -> Any:
        """Return the value of an expression of JavaScript, which JSON can represent."""
        answer = await self.send_command("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at a point, in CSS pixels, move it to another one, and release it."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            await self.send_command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
            )

    async def move_mouse(self, x: float, y: float) -> None:
        """Move the mouse to a point, in CSS pixels."""
        await self.send_command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def press_key(self, key: str) -> None:
        """Press and release a key of the keyboard, such as `Enter`."""
        for kind in ("keyDown", "keyUp"):
            await self.send_command("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def read_text(self, selector: str = "body") -> str:
        """Return the visible text of an element."""
        code = f"document.querySelector({selector!r}).innerText"
        return str((await self.send_command("Runtime.evaluate", expression=code))["result"].get("value", ""))

    async def wait_for_text(self, expected: str, selector: str = "body") -> None:
        """Wait until an element contains a text."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while expected not in (text := await self.read_text(selector)):
            assert time.monotonic() < deadline, f"no {expected!r} in {text!r}"
            await asyncio.sleep(0.1)

    async def screenshot(self, file: Path) -> None:
        """Write a picture of the page as PNG."""
        file.write_bytes(base64.b64decode((await self.send_command("Page.captureScreenshot"))["data"]))


@contextlib.asynccontextmanager
async def open_page(url: str, profile_dir: Path, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """Yield a page in a new browser; skip the test if no browser is installed."""
    browser = next(filter(None, map(shutil.which, BROWSER_NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSER_NAMES)}")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    options = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile_dir}",
    ]
    with subprocess.Popen(
        [browser, *sandbox, *options, f"--window-size={width},{height}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            port_file = profile_dir / "DevToolsActivePort"
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not port_file.exists() or not port_file.read_text().strip():
                assert time.monotonic() < deadline and process.poll() is None, "the browser does not start"
                await asyncio.sleep(0.05)
            debugger_url = f"http://127.0.0.1:{port_file.read_text().split()[0]}"
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{debugger_url}/json") as response:
                    target = next(target for target in await response.json() if target["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Network", "Runtime", "Log"):
                        await page.send_command(f"{domain}.enable")
                    await page.send_command("Page.navigate", url=url)
                    yield page
        finally:
            process.terminate()
