# SPDX-License-Identifier: Apache-2.0
"""The drawn canvases, without an engine."""

from __future__ import annotations

import io
import os
import time
from typing import Any

import pytest

from tests.cli.screen import Screen
from vllm.v1.diffusion.cli import canvas_view
from vllm.v1.diffusion.cli.canvas_view import CanvasView, EmittedBlock
from vllm.v1.diffusion.cli.progress import progress
from vllm.v1.diffusion.cli.quiet import quiet

MASK = "░"


def draw(
    monkeypatch: pytest.MonkeyPatch, prompts: Any, batches: Any, columns: Any = 40, rows: Any = 20
) -> Screen:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    stream = io.StringIO()
    view = CanvasView(prompts, stream)
    for batch in batches:
        view.show(batch)
    view.close()
    screen = Screen(columns)
    screen.feed(stream.getvalue())
    return screen


def test_masks_unmask_in_the_order_of_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = draw(
        monkeypatch,
        ["a=", "b="],
        [
            [EmittedBlock(0, ["x", "y", "z"], [1, 0, 2]), EmittedBlock(1, ["!"], [0])],
            [EmittedBlock(1, [], [], ("!", "  [done]"))],
            [EmittedBlock(0, ["w"], [3]), EmittedBlock(0, [], [], ("xyzw", "  [end]"))],
        ],
    )
    frames = [f for i, f in enumerate(screen.frames) if i == 0 or f != screen.frames[i - 1]]
    assert frames == [
        "a=\nb=",
        f"a={MASK * 3}\nb={MASK}",
        f"a={MASK}y{MASK}\nb={MASK}",
        f"a=xy{MASK}\nb={MASK}",
        "a=xyz\nb=!",
        "a=xyz\nb=!  [done]",
        f"a=xyz{MASK}\nb=!  [done]",
        "a=xyzw\nb=!  [done]",
        "a=xyzw  [end]\nb=!  [done]",
    ]
    assert screen.text == "a=xyzw  [end]\nb=!  [done]"


def test_long_lines_and_line_breaks_are_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one\n" + "t" * 25 + "\n\nend"
    cells = list(text)
    screen = draw(
        monkeypatch,
        ["p" * 12 + "="],
        [[EmittedBlock(0, cells, list(range(len(cells))))], [EmittedBlock(0, [], [], (text, ""))]],
        columns=10,
    )
    assert screen.text == "pppppppppp\npp=one\ntttttttttt\ntttttttttt\nttttt\n\nend"
    assert all(len(f.splitlines()) <= 8 for f in screen.frames)


def test_more_rows_than_the_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"{i}=" for i in range(9)]
    batches = [[EmittedBlock(i, ["a"], [0]), EmittedBlock(i, [], [], ("a", ""))] for i in range(9)]
    screen = draw(monkeypatch, prompts, batches, rows=5)
    assert max(len(f.splitlines()) for f in screen.frames) == 4
    assert screen.text == "\n".join(f"{i}=a" for i in range(9))


def test_an_answer_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b[2Jx\x07\r"
    screen = draw(monkeypatch, ["p="], [[EmittedBlock(0, [], [], (evil, ""))]])
    assert screen.text == "p=·[2Jx··"


def test_wide_characters_take_two_columns() -> None:
    rows = canvas_view._rows([("", "日本語ab")], columns=4)
    assert [row.removesuffix("\033[0m") for row in rows] == ["日本", "語ab"]


def test_giving_up_drawing_is_immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    view = CanvasView(["p="], stream)
    view.show([EmittedBlock(0, ["a"] * 100, list(range(100)))])
    view.close(at_once=True)
    assert not view._thread.is_alive()


def test_quiet_keeps_everything_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(True) as (log, screen):
        os.write(1, b"native\n")
        os.write(2, b"(EngineCore) ERROR ValueError: the cause\n")
        os.system("echo child; echo 'RuntimeError: Engine core initialization failed.' >&2")
        print("shown", file=screen, flush=True)
    print("after")
    assert capfd.readouterr() == ("after\n", "shown\n")
    assert log is not None
    assert log.last_error() == "the cause"


@pytest.mark.parametrize("active", [False, True])
def test_quiet_restores_after_an_error(capfd: pytest.CaptureFixture[str], active: bool) -> None:
    with pytest.raises(KeyError), quiet(active):
        raise KeyError
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_progress_is_silent_for_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("vllm.v1.diffusion.cli.progress._AFTER", 1e9)
    with progress("working", stream):
        pass
    assert stream.getvalue() == ""


def test_progress_names_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("vllm.v1.diffusion.cli.progress._AFTER", 0)
    with progress("working", stream):
        for _ in range(200):
            if stream.getvalue():
                break
            time.sleep(0.01)
    assert stream.getvalue().startswith("working … ")
    assert stream.getvalue().endswith(" s\n")
