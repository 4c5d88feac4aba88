# SPDX-License-Identifier: Apache-2.0
"""Draws tokens per second against batch and prompt length from the lines of ``benchmarks.gpu.growth``.

python -m benchmarks.gpu.plot growth.jsonl docs/growth.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.curves import Panel, Series, draw

Line = dict[str, Any]


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


def main() -> None:
    """Reads the lines and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("figure", type=Path)
    chosen = parser.parse_args()
    lines = [json.loads(text) for text in chosen.lines.read_text(encoding="utf-8").splitlines()]
    panels = [("batch", by_batch(lines)), ("prompt length", by_prompt(lines))]
    figure = draw([Panel(label, "tokens per second", curves) for label, curves in panels])
    chosen.figure.write_text(figure, encoding="utf-8")


if __name__ == "__main__":
    main()
