# SPDX-License-Identifier: Apache-2.0
"""A headless browser: opens a page, runs what it holds, says what came of it."""

from __future__ import annotations

import html
import json
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tools.browser_tab import NAMES, QUIET, Tab, find_browser, opened

_REPORT = """
<pre id="report"></pre>
<script type="module">
const report = async () => { %s };
document.getElementById("report").textContent = JSON.stringify(await report());
</script>
"""


class Browser:
    """Debian's chromium, or another of its kind."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._count = 0

    def report(self, page: str, script: str, fragment: str = "", *options: str) -> Any:
        """Opens a page in a new profile, and runs a script behind its own.

        Args:
            page: The page's text.
            script: An async function's body; what it returns comes back, by way of JSON. Timers
                run on virtual time, up to 30 s.
            fragment: The address behind ``#``.
            options: More options of the browser.
        """
        self._count += 1
        file = self._folder / f"page-{self._count}.html"
        file.write_text(page.replace("</body>", _REPORT % script + "</body>"), "utf-8")
        address = f"file://{file}{'#' if fragment else ''}{fragment}"
        profile = f"--user-data-dir={self._folder / f'profile-{self._count}'}"
        command = [
            self._program,
            *QUIET,
            "--window-size=1000,1200",
            profile,
            "--virtual-time-budget=30000",
            "--dump-dom",
        ]
        done = subprocess.run(
            [*command, *options, address], capture_output=True, text=True, timeout=120, check=True
        )
        found = re.search(r'<pre id="report">(.+?)</pre>', done.stdout, re.S)
        assert found, done.stderr[-2000:] or done.stdout[-2000:]
        return json.loads(html.unescape(found[1]))

    def open(self, address: str) -> AbstractContextManager[Tab]:
        """Opens an address in a new profile, in real time."""
        self._count += 1
        return opened(self._program, address, self._folder / f"profile-{self._count}")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH (apt-get install chromium)")
    return Browser(program, tmp_path_factory.mktemp("browser"))
