"""The README's picture: well formed, and every token appears with the step that unmasked it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from build_support import paths
from tools.canvas_animation import Canvas, animation

SVG = "{http://www.w3.org/2000/svg}"


def test_every_token_appears_at_its_step() -> None:
    picture = animation([Canvas("a<", ("x", "&", "y"), (1, 0, 1)), Canvas("b", ("z",), (2,))])
    root = ElementTree.fromstring(picture)
    shown = [(group.get("class"), group[-1].text) for group in root.iter(f"{SVG}g")]
    assert shown == [("s1", "x"), ("s0", "&"), ("s1", "y"), ("s2", "z")]
    starts = {
        int(step): float(at) for step, at in re.findall(r"@keyframes s(\d)\{[^}]*\}([\d.]+)%,99\.9%", picture)
    }
    assert sorted(starts) == [0, 1, 2]
    assert starts[0] < starts[1] < starts[2] < 100


@pytest.mark.parametrize("canvases", [[], [Canvas("a", (), ())]])
def test_a_picture_needs_a_token(canvases: list[Canvas]) -> None:
    with pytest.raises(ValueError, match="canvases"):
        animation(canvases)


def test_the_readme_shows_a_real_one() -> None:
    text = (paths.ROOT / "docs" / "canvas.svg").read_text("utf-8")
    groups = list(ElementTree.fromstring(text).iter(f"{SVG}g"))
    assert len(groups) > 20
    assert len({group.get("class") for group in groups}) > 1
    assert "docs/canvas.svg" in (paths.ROOT / "README.md").read_text("utf-8")
