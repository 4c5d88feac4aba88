"""A tab of a headless browser, driven over its own debugging protocol; for tests and pictures of pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
_STARTS = 60  # seconds


def find_browser() -> str | None:
    """Debian's chromium, or another of its kind; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A tab that shows one page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._count = 0

    def go(self, address: str) -> None:
        """Shows an address, and returns when it is loaded."""
        self._call("Page.enable")
        self._call("Page.navigate", url=address)
        while json.loads(self._connection.recv(timeout=120)).get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """Runs an async function's body in the page; what it returns comes back, by way of JSON.

        Raises:
            RuntimeError: It threw.
        """
        reported = self._call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in reported:
            raise RuntimeError(json.dumps(reported["exceptionDetails"])[:2000])
        return reported["result"].get("value")

    def picture(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """Writes what a window of some size shows, as PNG."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            said = json.loads(self._connection.recv(timeout=120))
            if said.get("id") == self._count:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return dict(said["result"])


@contextmanager
def opened(program: str, address: str, profile: Path) -> Iterator[Tab]:
    """Opens an address in a new browser, which ends with the context.

    Args:
        program: The browser.
        address: The page.
        profile: A folder of its own.
    """
    command = [program, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab_of(browser, profile), max_size=None) as connection:
            tab = Tab(connection)
            tab.go(address)
            yield tab
    finally:
        browser.terminate()
        try:
            browser.wait(20)
        finally:
            browser.kill()


def _tab_of(browser: subprocess.Popen[bytes], profile: Path) -> str:
    """The address at which the browser's first tab takes orders."""
    deadline = time.monotonic() + _STARTS
    port = profile / "DevToolsActivePort"
    while time.monotonic() < deadline and browser.poll() is None:
        time.sleep(0.1)
        if not port.exists() or not (lines := port.read_text().splitlines()):
            continue
        with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
            tabs = json.load(answer)
        for tab in tabs:
            if tab["type"] == "page":
                return str(tab["webSocketDebuggerUrl"])
    raise RuntimeError(f"no tab within {_STARTS} s (status {browser.poll()})")
