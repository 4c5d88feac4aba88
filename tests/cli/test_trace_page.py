# SPDX-License-Identifier: Apache-2.0
"""The page that replays a denoising, in a browser and as a text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vllm.v1.diffusion.cli.trace_page import TracedRequest, TraceFile, trace_page
from vllm.v1.diffusion.message.pieces import Piece, pieces

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!--"
EMOJI = "👩‍👩‍👧 ☀️ 日本"
ARABIC = ["مرحبا", " بالعالم"]


def request(prompt: Any, texts: Any, trace: Any, blocks: Any, **changes: Any) -> TracedRequest:
    unmasked = {"steps": 1 + max((step for step, _ in trace), default=-1), "end": "stop", **changes}
    cells = [Piece(text, text.startswith("<|")) for text in texts]
    return TracedRequest(prompt, cells, range(7, 7 + len(texts)), trace, blocks, **unmasked)


PAGE = trace_page(
    [
        request(
            "count " + HOSTILE,
            ["one", " two", "", " three", "<|end|>"],
            [(1, 0.5), (0, 1.0), (0, 0.25), (2, 0.75), (3, 0.97)],
            [3, 2],
        ),
        request(EMOJI + " \udcff\u2028", [HOSTILE, "😀\u202e\x1b"], [(0, 0.9), (1, 0.1)], [2], end="length"),
        request("", ARABIC, [(5, 0.3), (4, 0.6)], [2], steps=8),
        request("nothing", [], [], [], steps=0),
    ],
    how="model & <b>how</b>",
)

READ = """
const cells = [...document.querySelectorAll(".cell")];
const read = () => ({
  unmasked: cells.filter((c) => !c.classList.contains("masked")).map((c) => c.textContent),
  waiting: cells.filter((c) => c.classList.contains("waiting")).map((c) => c.textContent),
  now: cells.filter((c) => c.classList.contains("now")).map((c) => c.textContent),
  status: document.getElementById("status").textContent,
  paints: cells.map((c) => getComputedStyle(c).getPropertyValue("--paint")),
});
"""


def test_a_step_of_the_address(browser: Any) -> None:
    seen = browser.report(PAGE, READ + "return read();", "step=1")
    assert seen["status"] == "step 1 of 8 · 3 of 9 tokens unmasked"
    assert seen["unmasked"] == [" two", "‥", HOSTILE]
    assert seen["now"] == seen["unmasked"]
    # The second block of the first request stands on no canvas yet.
    assert seen["waiting"] == [" three", "<|end|>"]
    blank = browser.report(PAGE, READ + "return read();", "step=0&by=confidence")
    assert (blank["unmasked"], blank["status"]) == ([], "step 0 of 8 · 0 of 9 tokens unmasked")
    # Colours say how sure, not when: tokens unmasked in the same step differ.
    assert seen["paints"][1] == seen["paints"][2]
    assert blank["paints"][1] != blank["paints"][2]
    assert len(set(blank["paints"])) == 9


def test_texts_stay_texts(browser: Any) -> None:
    script = """
    const texts = (selector) => [...document.querySelectorAll(selector)].map((e) => e.textContent);
    return {
      title: document.title, images: document.images.length, scripts: document.scripts.length,
      how: document.getElementById("how").textContent, prompts: texts(".prompt"), cells: texts(".cell"),
      ends: texts("footer"), direction: getComputedStyle(document.querySelectorAll(".canvas")[2]).direction,
    };
    """
    seen = browser.report(PAGE, script, "step=8")
    assert (seen["title"], seen["images"], seen["scripts"]) == ("Denoising trace", 0, 3)
    assert seen["how"] == "model & <b>how</b>"
    assert seen["prompts"][0] == "count " + HOSTILE
    assert seen["prompts"][1] == EMOJI + " ⟨dcff⟩\u2028"
    assert seen["cells"][5:] == [HOSTILE, "😀⟨202e⟩⟨1b⟩", *ARABIC]
    assert seen["direction"] == "rtl"
    assert seen["ends"] == [
        "5 tokens · 4 steps · 1.3 tokens per forward · stop",
        "2 tokens · 2 steps · 1.0 tokens per forward · length",
        "2 tokens · 8 steps · 0.3 tokens per forward · stop",
        "0 tokens · 0 steps · 0.0 tokens per forward · stop",
    ]


def test_it_plays_by_itself_and_under_the_hand(browser: Any) -> None:
    script = (
        READ
        + """
    const statuses = [read().status];
    const wait = (ms) => new Promise((done) => setTimeout(done, ms));
    const act = (action) => { action(); return read().status; };
    const key = (name) => act(() => document.body.dispatchEvent(
      new KeyboardEvent("keydown", { key: name, bubbles: true })));
    const [play, slider, detail] = ["play", "slider", "detail"].map((id) => document.getElementById(id));
    const playing = play.textContent;
    for (let i = 0; i < 200; i += 1) {
      await wait(25);
      if (read().status !== statuses.at(-1)) statuses.push(read().status);
    }
    const slid = act(() => { slider.value = 3; slider.dispatchEvent(new Event("input")); });
    const keys = ["ArrowRight", "ArrowLeft", "ArrowLeft", "Home", "ArrowLeft", "End"].map(key);
    const point = (index) => {
      cells[index].dispatchEvent(new Event("pointerover", { bubbles: true }));
      return detail.textContent;
    };
    const pointed = point(1);
    key("Home");
    const hidden = point(1);
    play.click();
    await wait(900);
    play.click();
    const paused = [read().status];
    await wait(2000);
    paused.push(read().status);
    return { statuses, playing, slid, keys, pointed, hidden, paused, label: play.textContent };
    """
    )
    seen = browser.report(PAGE, script)
    assert seen["playing"] == "Pause"
    assert [int(s.split()[1]) for s in seen["statuses"]] == list(range(9))
    assert seen["slid"].startswith("step 3 ")
    assert [int(s.split()[1]) for s in seen["keys"]] == [4, 3, 2, 0, 0, 8]
    assert seen["pointed"] == '" two" · id 8 · unmasked in step 1 · 100 % sure'
    assert seen["hidden"] == "not unmasked yet"
    assert seen["paused"][0] == seen["paused"][1]
    assert seen["paused"][0].split()[1] not in ("0", "8")
    assert seen["label"] == "Play"


def test_it_does_not_move_for_whom_that_disturbs(browser: Any) -> None:
    seen = browser.report(PAGE, READ + "return read();", "", "--force-prefers-reduced-motion")
    assert seen["status"] == "step 8 of 8 · 9 of 9 tokens unmasked"


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_in_light_and_dark(browser: Any, dark: bool) -> None:
    script = """
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colour) => {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (element, behind) => {
      const [low, high] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
        .map(luminance).sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    };
    const cells = [...document.querySelectorAll(".cell:not(.special)")];
    const ratios = [];
    for (const by of ["step", "confidence"]) {
      document.querySelector(`[value=${by}]`).click();
      ratios.push(...cells.map((cell) => contrast(cell, cell)));
    }
    const player = document.getElementById("player");
    ratios.push(contrast(document.getElementById("how"), document.body));
    ratios.push(contrast(document.querySelector(".prompt"), document.querySelector("article")));
    ratios.push(contrast(document.getElementById("detail"), player));
    ratios.push(contrast(document.getElementById("play"), document.getElementById("play")));
    return { ratios, page: luminance(getComputedStyle(document.body).backgroundColor) };
    """
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    seen = browser.report(PAGE, script, "step=8", *scheme)
    assert (seen["page"] < 0.05) if dark else (seen["page"] > 0.8)
    assert min(seen["ratios"]) >= 4.5, seen["ratios"]  # WCAG 2, level AA


def test_it_needs_no_other_file_and_no_network() -> None:
    assert "default-src 'none'" in PAGE
    code = PAGE.split('<script id="data"')[0] + PAGE.split("</script>")[1]
    assert not re.search(r"\b(src|href)=|url\(|@import|fetch\(|XMLHttp|import[ (]|WebSocket|sendBeacon", code)
    assert [u for u in re.findall(r"https?://\S+?[\"']", code) if "www.w3.org/2000/svg" not in u] == []


def test_the_data_is_ascii_and_ends_no_element() -> None:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', PAGE)
    assert found
    data = found[1]
    assert data.isascii()
    assert "<" not in data
    assert json.loads(data)["requests"][1]["tokens"][0]["text"] == HOSTILE


def test_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    file = TraceFile(str(path))
    assert not path.exists()
    for prompt in ("first", "second"):
        file.add([request(prompt, ["a"], [(0, 1.0)], [1])], "how")
    found = re.search(r'json">(.*?)</script>', path.read_text())
    assert found
    data = json.loads(found[1])
    assert [r["prompt"] for r in data["requests"]] == ["first", "second"]
    with pytest.raises(OSError, match="absent"):
        TraceFile(str(tmp_path / "absent" / "page.html"))


class Bytes:
    """A tokenizer of bytes, with a space that only shows behind another token."""

    all_special_ids = (0,)

    def decode(self, ids: Any, skip_special_tokens: Any = False) -> Any:
        text = b"".join(b"<end>" if i == 0 else bytes([i]) for i in ids).decode(errors="replace")
        return text.removeprefix(" ")


BYTES: Any = Bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["a", "b"]),
        (" a b", ["", "a", " ", "b"]),
        ("é€😀!", ["", "é", "", "", "€", "", "", "", "😀", "!"]),
    ],
)
def test_pieces_join_to_the_text(text: Any, expected: Any) -> None:
    found = pieces(BYTES, text.encode())
    assert [piece.text for piece in found] == expected
    assert not any(piece.special for piece in found)


def test_special_and_broken_tokens_have_pieces_too() -> None:
    assert pieces(BYTES, [97, 0, 98]) == [Piece("a", False), Piece("<end>", True), Piece("b", False)]
    cut = pieces(BYTES, "a😀".encode()[:-1])
    assert [p.text for p in cut] == ["a", "", "", ""]
    never = [p.text for p in pieces(BYTES, [0x80] * 5 + [97])]
    assert "".join(never) == "\ufffd" * 5 + "a"
