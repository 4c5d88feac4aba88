# SPDX-License-Identifier: Apache-2.0
"""Curves as an SVG: panels beside each other, a logarithmic horizontal axis, a legend in each panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Series = dict[str, list[tuple[float, float]]]

_WIDTH, _HEIGHT, _MARGIN = 380, 300, 56
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#6d597a", "#b08900", "#444444", "#0b8a8a", "#a23b72")


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        across: What the horizontal axis counts.
        up: What the vertical axis shows.
        curves: Points of each curve, in the order in which a line joins them.
        ticks: Marks of the horizontal axis; where there are none, every value that occurs.
        levels: Marks of a linear vertical axis; where there are none, it is logarithmic.
    """

    across: str
    up: str
    curves: Series
    ticks: Sequence[float] = ()
    levels: Sequence[float] = ()


def draw(panels: Sequence[Panel], legend: bool = True) -> str:
    """An SVG with a panel beside the other.

    Args:
        panels: The diagrams.
        legend: Whether every panel names its curves, and not the last one alone.

    Raises:
        ValueError: A panel has no curve.
    """
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        if not panel.curves:
            raise ValueError(f"no two lines differ in {panel.across} alone: nothing to draw")
        parts += _diagram(i * _WIDTH, panel, legend or i == len(panels) - 1)
    return "\n".join([*parts, "</svg>", ""])


def _levels(panel: Panel) -> list[float]:
    if panel.levels:
        return list(panel.levels)
    ys = [y for points in panel.curves.values() for _, y in points]
    first, last = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys) * 1.01))
    return [float(10**power) for power in range(first, last + 1)]


def _diagram(left: int, panel: Panel, legend: bool) -> list[str]:
    levels = _levels(panel)
    xs = sorted({x for points in panel.curves.values() for x, _ in points} | set(panel.ticks))
    low, high = levels[0], levels[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = (y - low) / (high - low) if panel.levels else math.log(y / low) / math.log(high / low)
        return (
            left + _MARGIN + across * (_WIDTH - 1.5 * _MARGIN),
            _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN),
        )

    parts = []
    for level in levels:
        (x0, y0), (x1, _) = place(xs[0], level), place(xs[-1], level)
        parts.append(f'<path d="M{x0:.1f} {y0:.1f}H{x1:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{level:,.0f}</text>')
    for x in panel.ticks or xs:
        across, bottom = place(x, low)
        parts.append(f'<text x="{across:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x:g}</text>')
    middle = left + _WIDTH / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{panel.across}</text>')
    parts.append(f'<text x="{middle:.1f}" y="20" text-anchor="middle">{panel.up}</text>')
    # Curves of a linear panel fall to the right and leave its lower left corner free.
    top = _HEIGHT - _MARGIN - 8 - 14 * (len(panel.curves) - 1) if panel.levels else 38
    for i, (name, points) in enumerate(panel.curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        if legend:
            row = top + 14 * i
            parts.append(f'<text x="{left + _MARGIN + 8}" y="{row}" fill="{colour}">{name}</text>')
    return parts
