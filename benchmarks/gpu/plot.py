# SPDX-License-Identifier: Apache-2.0
"""Draws tokens per second against batch and prompt length from the lines of ``benchmarks.gpu.growth``.

python -m benchmarks.gpu.plot growth.jsonl docs/growth.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]

_WIDTH, _HEIGHT, _MARGIN = 380, 300, 56
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#6d597a", "#b08900", "#444444")


def by_batch(lines: list[Line]) -> Series:
    """Tokens per second by batch, one curve a shape, with its shortest prompts."""
    shortest = min(line["prompt"] for line in lines)
    return _curves([line for line in lines if line["prompt"] == shortest], "batch", _shape)


def by_prompt(lines: list[Line]) -> Series:
    """Tokens per second by prompt length, one curve a shape and batch that has several lengths."""
    return _curves(lines, "prompt", lambda line: f"{_shape(line)}, batch {line['batch']}")


def _shape(line: Line) -> str:
    return f"{line['shape']}, {line['cache']}" if line.get("cache") else str(line["shape"])


def _curves(lines: list[Line], along: str, name: Callable[[Line], str]) -> Series:
    curves: Series = {}
    for line in lines:
        curves.setdefault(name(line), []).append((line[along], line["tokens_per_second"]))
    return {key: sorted(points) for key, points in curves.items() if len(points) > 1}


def draw(panels: list[tuple[str, Series]]) -> str:
    """An SVG with a panel beside the other, both axes logarithmic.

    Args:
        panels: What the horizontal axis counts, and the curves, of each panel.

    Raises:
        ValueError: A panel has no curve.
    """
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for i, (label, curves) in enumerate(panels):
        if not curves:
            raise ValueError(f"no two lines differ in {label} alone: nothing to draw")
        parts += _panel(i * _WIDTH, label, curves)
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: int, label: str, curves: Series) -> list[str]:
    xs = sorted({x for points in curves.values() for x, _ in points})
    ys = [y for points in curves.values() for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.01))

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(y / low) / math.log(high / low)
        return (
            left + _MARGIN + across * (_WIDTH - 1.5 * _MARGIN),
            _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN),
        )

    parts = []
    level = low
    while level <= high:
        (x0, y0), (x1, _) = place(xs[0], level), place(xs[-1], level)
        parts.append(f'<path d="M{x0:.1f} {y0:.1f}H{x1:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{level:,}</text>')
        level *= 10
    for x in xs:
        across, bottom = place(x, low)
        parts.append(f'<text x="{across:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x}</text>')
    middle = left + _WIDTH / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{middle:.1f}" y="20" text-anchor="middle">tokens per second</text>')
    for i, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        row = 38 + 14 * i
        parts.append(f'<text x="{left + _MARGIN + 8}" y="{row}" fill="{colour}">{name}</text>')
    return parts


def main() -> None:
    """Reads the lines and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("figure", type=Path)
    chosen = parser.parse_args()
    lines = [json.loads(text) for text in chosen.lines.read_text(encoding="utf-8").splitlines()]
    panels = [("batch", by_batch(lines)), ("prompt length", by_prompt(lines))]
    chosen.figure.write_text(draw(panels), encoding="utf-8")


if __name__ == "__main__":
    main()
