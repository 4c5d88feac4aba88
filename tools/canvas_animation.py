#!/usr/bin/env python3
"""Draws canvases being denoised, as one animated SVG, from real traces of the bundled model.

    python tools/canvas_animation.py docs/canvas.svg

The model answers each prompt through the engine with ``diffusion_trace``. Every token appears at the
denoising step that unmasked it, coloured by that step. The picture needs no script and no other file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

PROMPTS = ("sudoku 1003/0300/3210/4132=", "sort 83142=", "reverse stone=")
_COLOURS = ("#1b9e77", "#7570b3", "#d95f02", "#e7298a", "#66a61e", "#a6761d", "#1f78b4", "#b15928")
_CELL, _LINE, _LEFT, _TOP = 15, 44, 16, 34  # pixels
_STEP, _PAUSE = 0.7, 2.5  # seconds


@dataclass(frozen=True)
class Canvas:
    """One answered prompt.

    Attributes:
        prompt: The prompt.
        tokens: The answer's tokens, as text.
        steps: The denoising step of the request that unmasked each token, from 0.
    """

    prompt: str
    tokens: tuple[str, ...]
    steps: tuple[int, ...]


def _appears(step: int, last: int) -> str:
    """Key frames of a token that step ``step`` unmasks: hidden before it, shown until the end."""
    whole = _STEP * (last + 1) + _PAUSE
    at = 100 * _STEP * (step + 1) / whole
    return (
        f"@keyframes s{step}{{0%,{at - 0.01:.2f}%{{opacity:0}}{at:.2f}%,99.9%{{opacity:1}}100%{{opacity:0}}}}"
    )


def animation(canvases: list[Canvas]) -> str:
    """The picture, as SVG text.

    Raises:
        ValueError: There is no canvas, or a canvas without a token.
    """
    if not canvases or not all(canvas.tokens for canvas in canvases):
        raise ValueError("canvases must hold at least one canvas, and each at least one token.")
    last = max(max(canvas.steps) for canvas in canvases)
    whole = _STEP * (last + 1) + _PAUSE
    used = sorted({step for canvas in canvases for step in canvas.steps})
    columns = max(len(canvas.prompt) + len(canvas.tokens) for canvas in canvases)
    width = 2 * _LEFT + _CELL * columns
    height = _TOP + _LINE * len(canvases)
    style = [
        "text{font:16px ui-monospace,Menlo,Consolas,monospace;text-anchor:middle}",
        ".p{fill:#57606a}.m{fill:#8b949e}.t{font-weight:600}.n{font-size:12px;text-anchor:start;fill:#57606a}",
        *(_appears(step, last) for step in used),
        *(
            f".s{step}{{animation:s{step} {whole:.2f}s infinite;fill:{_COLOURS[step % len(_COLOURS)]}}}"
            for step in used
        ),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="Masks turn into tokens, several in each step">',
        f"<style>{''.join(style)}</style>",
        f'<text class="n" x="{_LEFT}" y="18">masks turn into tokens; one colour per denoising step</text>',
    ]
    for row, canvas in enumerate(canvases):
        y = _TOP + _LINE * row + 24
        x = _LEFT + _CELL / 2
        for character in canvas.prompt:
            parts.append(f'<text class="p" x="{x:g}" y="{y}">{escape(character)}</text>')
            x += _CELL
        for token, step in zip(canvas.tokens, canvas.steps, strict=True):
            # The token covers its mask, so nothing needs to be hidden when it appears.
            parts.append(f'<text class="m" x="{x:g}" y="{y}">░</text>')
            parts.append(
                f'<g class="s{step}"><rect x="{x - _CELL / 2:g}" y="{y - 15}" width="{_CELL}" height="20" '
                f'style="fill:#fff"/><text class="t" x="{x:g}" y="{y}">{escape(token)}</text></g>'
            )
            x += _CELL
    parts.append("</svg>\n")
    return "\n".join(parts)


def answered(prompts: tuple[str, ...]) -> list[Canvas]:
    """Has the bundled model answer prompts, four steps per block, and returns their traces."""
    from vllm import LLM
    from vllm.v1.diffusion import bundled_path
    from vllm.v1.diffusion.plugins import DiffusionParams

    llm = LLM(model=bundled_path(), dtype="float32", enforce_eager=True)
    params = DiffusionParams(algorithm="low_confidence_static", steps=4, trace=True).sampling_params(
        temperature=0, max_tokens=32
    )
    tokenizer = llm.get_tokenizer()
    canvases = []
    for prompt, output in zip(prompts, llm.generate(list(prompts), params), strict=True):
        completion = output.outputs[0]
        tokens = [tokenizer.decode([one]) for one in completion.token_ids]
        assert completion.diffusion is not None and completion.diffusion.trace is not None
        steps = [step for step, _ in completion.diffusion.trace]
        shown = len(completion.text)  # without the end token, which has no text
        canvases.append(Canvas(prompt, tuple(tokens[:shown]), tuple(steps[:shown])))
    return canvases


def main() -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="where the SVG goes")
    file: Path = parser.parse_args().file
    file.write_text(animation(answered(PROMPTS)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
