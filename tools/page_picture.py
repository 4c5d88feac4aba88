#!/usr/bin/env python3
"""Takes a picture of the live page, of ``vllm serve --diffusion-page`` with the bundled model.

    python tools/page_picture.py docs/page.png

The server denoises the page's examples. Then the slider stands at ``STEP``, or at the last step before it.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.browser_tab import NAMES, find_browser, opened

SIZE = (860, 760)  # pixels
PATIENCE = 900  # seconds
STEP = 11
_SCRIPT = """
const how = { diffusion_algorithm: "low_confidence_static", diffusion_steps: 8 };
document.getElementById("parameters").value = JSON.stringify({ max_tokens: 64, vllm_xargs: how });
const examples = [...document.querySelectorAll("#examples button")].reverse();
for (const example of examples) example.click();
document.getElementById("prompt").value = "";
const footers = () => [...document.querySelectorAll("article footer")].map((footer) => footer.textContent);
const ended = (text) => /(stop|length|failed)$/.test(text);
while (footers().length < examples.length || !footers().every(ended)) {
  await new Promise((go) => setTimeout(go, 100));
}
const slider = document.getElementById("slider");
slider.value = %d;
slider.dispatchEvent(new Event("input"));
document.activeElement.blur();
return footers();
"""


@contextmanager
def serving() -> Iterator[str]:
    """A server of the bundled model, until it is healthy; its address.

    Raises:
        RuntimeError: It does not start.
    """
    from vllm.v1.diffusion import bundled_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", bundled_path()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "bundled"]
    server = subprocess.Popen([*command, "--diffusion-page", "--enforce-eager"])
    deadline = time.monotonic() + PATIENCE
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=10).close()
                break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start") from None
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE)
        finally:
            server.kill()


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the picture's file, PNG")
    parser.add_argument("--dark", action="store_true", help="the page's dark colours")
    args = parser.parse_args()
    program = find_browser()
    if program is None:
        sys.exit(f"error: no browser: none of {', '.join(NAMES)} is on PATH.")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving() as address,
        opened(program, f"{address}/diffusion", Path(folder)) as tab,
    ):
        for footer in tab.run(_SCRIPT % STEP):
            print(footer)
        tab.picture(args.out, *SIZE, dark=args.dark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
