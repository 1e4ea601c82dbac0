"""Debian's Chromium, headless, spoken to over its DevTools protocol: what a person sees, and what the script does.

async with Chromium(directory) as browser:
    await browser.open(url, width=390, height=844, dark=True)
    await browser.evaluate("document.title")
    await browser.screenshot(path)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any, Self

import aiohttp

PATH = shutil.which("chromium")
START_S = 60.0


class Chromium:
    """One page of one browser."""

    def __init__(self, directory: Path) -> None:
        self._profile = directory / "profile"
        self._numbers = itertools.count(1)
        self.errors: list[str] = []  # what the page's console and its security policy complained about

    async def __aenter__(self) -> Self:
        assert PATH is not None
        self._process = await asyncio.create_subprocess_exec(
            *(PATH, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank"),
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            process_group=0,
        )
        self._session = aiohttp.ClientSession()
        try:
            await self._enter()
        except BaseException:
            await self._kill()
            raise
        return self

    async def _enter(self) -> None:
        async with asyncio.timeout(START_S):
            port_file = self._profile / "DevToolsActivePort"
            while not (port_file.exists() and port_file.read_text()):
                await asyncio.sleep(0.05)
            port = port_file.read_text().splitlines()[0]
            async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in await answer.json() if page["type"] == "page"]
            self._wire = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=2**26)
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._session.close()
        await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, aiohttp.ClientError):
            async with asyncio.timeout(5):
                await self.call("Browser.close")
                await self._process.wait()
        await self._kill()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        number = next(self._numbers)
        await self._wire.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(START_S):
            while True:
                message = await self._wire.receive()
                if message.type != aiohttp.WSMsgType.TEXT:
                    raise ConnectionError("the browser has gone")
                reply = json.loads(message.data)
                if reply.get("id") == number:
                    assert "error" not in reply, reply
                    result: dict[str, Any] = reply["result"]
                    return result
                self._note(reply)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])

    async def open(
        self, url: str, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """Shows a page in a window of that size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Emulation.setScriptExecutionDisabled", value=not script)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, wait_s: float = 60.0) -> Any:
        """The value of an expression once it is true."""
        async with asyncio.timeout(wait_s):
            while not (value := await self.evaluate(expression)):
                await asyncio.sleep(0.05)
            return value

    async def screenshot(self, path: Path, full_page: bool = True) -> None:
        """The page as PNG: the whole of it, or what fits the window."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)
        path.write_bytes(base64.b64decode(shot["data"]))
