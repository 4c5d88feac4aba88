# SPDX-License-Identifier: Apache-2.0
"""The page of ``--diffusion-page``: on a stream that a test writes, and on a server's own."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.server.known_answers import SOLVED, SUDOKU
from vllm.v1.diffusion.bundled import bundled_path
from vllm.v1.diffusion.frontend.page import PATH, attach_page

READ = """
const wait = async (met) => {
  for (let i = 0; i < 1200 && !met(); i += 1) await new Promise((done) => setTimeout(done, 50));
};
const ask = (text) => {
  document.getElementById("prompt").value = text;
  document.getElementById("ask").requestSubmit();
};
const texts = (selector) => [...document.querySelectorAll(selector)].map((e) => e.textContent);
const status = () => document.getElementById("status").textContent;
const settled = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
const read = async () => {
  await settled();
  const cells = [...document.querySelectorAll("article:first-of-type .cell")];
  const those = (name) => cells.filter((c) => c.classList.contains(name)).map((c) => cells.indexOf(c));
  return {
    cells: cells.map((c) => c.textContent),
    masked: those("masked"), waiting: those("waiting"), now: those("now"),
    special: those("special"), noise: those("noise"),
    status: status(), footer: texts("article:first-of-type footer")[0],
    paints: cells.map((c) => c.style.getPropertyValue("--paint")),
  };
};
const slide = (to) => {
  const slider = document.getElementById("slider");
  slider.value = to;
  slider.dispatchEvent(new Event("input"));
};
"""


def engine(diffusion: bool = True) -> Any:
    config = SimpleNamespace(block_length=4) if diffusion else None
    model = SimpleNamespace(model=bundled_path())
    return SimpleNamespace(vllm_config=SimpleNamespace(diffusion_config=config, model_config=model))


def app_with(page: bool, client: Any, names: list[str] | None = None) -> FastAPI:
    app = FastAPI()
    app.state.endpoint_plugins = []
    args = Namespace(diffusion_page=page, served_model_name=names)
    attach_page(app, args)
    for plugin in app.state.endpoint_plugins:
        asyncio.run(plugin.init_state(client, app.state, args))
    return app


def test_it_is_there_where_asked_for() -> None:
    assert TestClient(app_with(False, engine())).get(PATH).status_code == 404
    answer = TestClient(app_with(True, engine(), ["</script><b>", "other"])).get(PATH)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', answer.text, re.S)
    assert data is not None
    assert json.loads(data[1])["model"] == "</script><b>"
    # It needs no other file and no other host.
    assert not re.search(r"""(src|href)=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", answer.text)
    assert not re.search(r"@[A-Z]+@", answer.text)


def test_a_model_that_has_no_canvas_is_refused() -> None:
    for client in (engine(diffusion=False), None):
        with pytest.raises(ValueError, match=r"^--diffusion-page needs a server of a diffusion model"):
            app_with(True, client)


class Script:
    """A server whose stream goes on when the test says so."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.asked: dict[str, Any] = {}
        self.path = ""
        self.key: str | None = None
        self.events: list[str] = []
        self._more = threading.Semaphore(0)

    def send(self, *chunks: dict[str, Any] | str) -> None:
        for chunk in chunks:
            self.events.append(chunk if isinstance(chunk, str) else json.dumps(chunk))
            self._more.release()

    def next_event(self) -> str:
        self._more.acquire(timeout=60)
        return self.events.pop(0)


@contextmanager
def scripted() -> Iterator[tuple[Script, str]]:
    script = Script(TestClient(app_with(True, engine(), ["model"])).get(PATH).text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._begin(200, "text/html")
            self.wfile.write(script.page.encode())

        def do_POST(self) -> None:
            script.path = self.path
            script.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.key = self.headers["authorization"]
            event = script.next_event()
            if event.startswith("refuse "):
                self._begin(400, "application/json")
                self.wfile.write(json.dumps({"error": {"message": event}}).encode())
                return
            self._begin(200, "text/event-stream")
            while True:
                # Cut anywhere, as a network does.
                for part in (event[:7], event[7:] + "\n\n"):
                    self.wfile.write(("data: " * (part == event[:7]) + part).encode())
                    self.wfile.flush()
                if event == "[DONE]":
                    return
                event = script.next_event()

        def _begin(self, code: int, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield script, f"http://127.0.0.1:{server.server_address[1]}{PATH}"
        finally:
            server.shutdown()


def canvas(step: int, begin: int, pieces: list[str], open_: list[int], special: tuple[int, ...] = ()) -> Any:
    said = {
        "step": step,
        "begin": begin,
        "pieces": pieces,
        "open": open_,
        "special": list(special),
        "token_ids": [-1 if i in open_ and not p else 10 + len(p) for i, p in enumerate(pieces)],
        "confidence": [0 if i in open_ else 0.5 for i in range(len(pieces))],
    }
    return {"choices": [{"index": 0, "text": "", "finish_reason": None, "diffusion": {"canvas": said}}]}


def chunk(text: str, end: str | None = None) -> Any:
    return {"choices": [{"index": 0, "text": text, "finish_reason": end}]}


HOSTILE = "</span><img src=x onerror=\"document.title='owned'\">"


def test_a_canvas_is_drawn_as_it_stands(browser: Any) -> None:
    with scripted() as (script, address), browser.open(address) as tab:
        tab.run(READ + "document.getElementById('key').value = 'secret'; ask('count');")
        script.send(canvas(0, 0, ["one", "", "", " three"], [1, 2]))
        seen = tab.run(READ + "await wait(() => status().startsWith('step 1 of 1')); return read();")
        assert script.path == "/v1/completions"
        assert script.key == "Bearer secret"
        assert script.asked["prompt"] == "count"
        assert script.asked["stream"] is True
        assert script.asked["vllm_xargs"] == {"diffusion_stream": "steps"}
        assert seen["status"] == "step 1 of 1 · 2 of 4 tokens unmasked"
        assert seen["cells"] == ["one", "·", "·", " three"]
        assert (seen["masked"], seen["now"]) == ([1, 2], [0, 3])
        assert seen["footer"] == "1 steps · denoising"
        script.send(
            canvas(1, 0, ["one", HOSTILE, "", " three"], [2]),
            canvas(2, 0, ["one", HOSTILE, "\n", " three"], []),
            chunk("one " + HOSTILE),
            canvas(3, 4, ["", "<|end|>", ""], [0, 2], (1,)),
        )
        seen = tab.run(READ + "await wait(() => status().startsWith('step 4 of 4')); return read();")
        assert seen["cells"] == ["one", HOSTILE, "⏎\n", " three", "·", "<|end|>", "·"]
        assert (seen["masked"], seen["now"], seen["special"]) == ([4, 6], [5], [5])
        # The slider goes back, and what comes meanwhile does not move it.
        back = tab.run(READ + "slide(2); return read();")
        assert (back["status"], back["masked"]) == (
            "step 2 of 4 · 3 of 7 tokens unmasked",
            [2, 4, 5, 6],
        )
        assert back["waiting"] == [4, 5, 6]
        script.send(
            canvas(4, 4, ["!", "<|end|>", "x"], [], (1,)),
            chunk("!", "stop"),
            {"choices": [], "usage": {"completion_tokens": 6}},
            "[DONE]",
        )
        seen = tab.run(READ + "await wait(() => texts('footer')[0].endsWith('stop')); return read();")
        assert seen["status"] == "step 2 of 5 · 3 of 7 tokens unmasked"
        assert seen["footer"] == "6 tokens · 1.2 tokens per forward · 5 steps · stop"
        seen = tab.run(READ + "slide(5); return read();")
        assert seen["cells"][4:] == ["!", "<|end|>", "x"]
        # What stands behind the answer's end is no part of it.
        assert seen["waiting"] == [6]
        assert len(set(seen["paints"])) == 5
        sure = tab.run(READ + "document.querySelector('[value=confidence]').click(); return read();")
        assert len(set(sure["paints"])) == 1
        title, images = tab.run("return [document.title, document.images.length];")
        assert (title, images) == ("Live denoising", 0)


def test_tokens_that_change_and_canvases_that_shrink(browser: Any) -> None:
    with scripted() as (script, address), browser.open(address) as tab:
        tab.run(READ + "document.querySelector('[value=chat]').click(); ask('p');")
        script.send(
            canvas(0, 0, ["noise", "other", "ab"], [0, 1, 2]),
            canvas(1, 0, ["wrong", "other", "ab"], [1, 2]),
            canvas(2, 0, ["right!", "other"], [1]),
        )
        seen = tab.run(READ + "await wait(() => status().startsWith('step 3 of 3')); return read();")
        assert script.path == "/v1/chat/completions"
        assert script.asked["messages"] == [{"role": "user", "content": "p"}]
        assert (seen["cells"][:2], seen["noise"][0], seen["now"]) == (["right!", "other"], 1, [0])
        assert seen["status"] == "step 3 of 3 · 1 of 2 tokens unmasked"
        seen = tab.run(READ + "slide(2); return read();")
        assert (seen["cells"], seen["status"]) == (
            ["wrong", "other", "ab"],
            "step 2 of 3 · 1 of 3 tokens unmasked",
        )
        # Stopped by the reader: the request ends.
        seen = tab.run(
            READ + "document.querySelector('article button').click();"
            "await wait(() => texts('footer')[0].endsWith('stopped')); return read();"
        )
        assert seen["footer"] == "3 steps · stopped"
        script.send("[DONE]")


def test_what_the_server_refuses_is_shown(browser: Any) -> None:
    with scripted() as (script, address), browser.open(address) as tab:
        script.send("refuse <b>this</b>")
        shown = tab.run(
            READ + "ask('p'); await wait(() => texts('article .error').length); return texts('.error');"
        )
        assert "refuse <b>this</b>" in shown
        tab.run("document.getElementById('parameters').value = '{';")
        shown = tab.run(READ + "ask('p'); return texts('#problem');")
        assert shown[0].startswith("Parameters are no JSON")


def test_a_server_s_own_stream(browser: Any, server: Any) -> None:
    """The bundled model: live in the page, several prompts at once, and its answer is the right one."""
    with browser.open(server.url + PATH) as tab:
        examples = tab.run(READ + "return texts('#examples button');")
        assert len(examples) == 3
        seen = tab.run(
            READ
            + f"document.querySelector('#examples button:last-child').click(); ask({json.dumps(SUDOKU)});"
            "const ended = (text) => /(stop|length)$/.test(text);"
            "await wait(() => texts('footer').length === 2 && texts('footer').every(ended));"
            "const other = texts('article:last-of-type .cell');"
            "return { ...(await read()), errors: texts('.error'), other };"
        )
        assert not any(seen["errors"])
        tokens = int(seen["footer"].split()[0])
        assert tokens == len(SOLVED) + 1
        assert "".join(seen["cells"][: tokens - 1]) == SOLVED
        assert "".join(seen["other"]).startswith("enots")
        steps = int(re.search(r"step (\d+) of (\d+)", seen["status"])[2])  # type: ignore[index]
        counts = [
            tab.run(READ + f"slide({step}); return (await read()).masked.length;")
            for step in range(steps + 1)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[steps] == 0
