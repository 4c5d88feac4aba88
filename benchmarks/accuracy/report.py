# SPDX-License-Identifier: Apache-2.0
"""Tables and curves from the lines of ``benchmarks.judged``.

python -m benchmarks.accuracy.report lines.jsonl --figure docs/accuracy.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.accuracy.score import Score
from benchmarks.curves import Panel, Series, draw

Line = dict[str, Any]
"""A score of one task: ``method``, ``setting``, ``task``, ``batch`` and the fields of ``Score``."""

TICKS = (0.5, 1, 2, 4, 8, 16, 32)
LEVELS = (0, 20, 40, 60, 80, 100)


def score_of(line: Line) -> Score:
    """The score that a line holds."""
    return Score(*(line[name] for name in ("problems", "right", "tokens", "forwards", "seconds")))


def rows(lines: Iterable[Line]) -> Iterator[tuple[str, str, dict[str, Score]]]:
    """Method, setting and the score of each task, in the order of the lines."""
    for (method, setting), group in groupby(lines, key=lambda line: (line["method"], line["setting"])):
        yield method, setting, {line["task"]: score_of(line) for line in group}


def table(lines: list[Line], speed: bool = False) -> str:
    """A Markdown table: one setting a row, accuracy and tokens per forward of each task.

    Args:
        lines: The scores.
        speed: Whether to add tokens per second.
    """
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    heads = ["decoding", *tasks, "all", *(["tokens/s"] if speed else [])]
    text = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, setting, scores in rows(lines):
        total = sum(scores.values(), Score(0, 0, 0, 0))
        cells = [f"`{method}`, {setting}", *(str(scores[task]) for task in tasks), str(total)]
        cells += [f"{total.tokens_per_second:.0f}"] if speed else []
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def best(lines: list[Line], loss: float = 0.5) -> dict[str, tuple[str, Score]]:
    """Each method's setting of most tokens per forward among those that lose little, and its score.

    The threshold of ``dynamic`` is tuned first: it may lose ``loss`` against the most accurate setting of
    ``static``. The other methods may lose as much against the tuned threshold. A method of which every
    setting loses more is left out.

    Args:
        lines: The scores, of one batch size, ``static`` and ``dynamic`` among them.
        loss: Points of accuracy, over all tasks.
    """
    totals: dict[str, dict[str, Score]] = {}
    for method, setting, scores in rows(lines):
        totals.setdefault(method, {})[setting] = sum(scores.values(), Score(0, 0, 0, 0))

    def fastest(method: str, least: float) -> tuple[str, Score] | None:
        enough = [(name, total) for name, total in totals[method].items() if total.accuracy >= least]
        return max(enough, key=lambda pair: pair[1].tokens_per_forward, default=None)

    least = max(total.accuracy for total in totals["static"].values()) - loss / 100
    tuned = fastest("dynamic", least)
    if tuned:
        least = tuned[1].accuracy - loss / 100
    found = {method: tuned if method == "dynamic" else fastest(method, least) for method in totals}
    return {method: pair for method, pair in found.items() if pair}


def points(lines: Iterable[Line]) -> dict[str, Series]:
    """Tokens per forward and right answers in per cent, by task and method."""
    found: dict[str, Series] = {}
    for line in lines:
        score = score_of(line)
        curve = found.setdefault(line["task"], {}).setdefault(line["method"], [])
        curve.append((score.tokens_per_forward, 100 * score.accuracy))
    return found


def logged_points(lines: Iterable[Line]) -> dict[str, Series]:
    """The same of the lines that ``tinydlm.reason`` logs of its reference decoding."""
    found: dict[str, Series] = {}
    for line in lines:
        for task, (accuracy, speed) in line.get("held_out", {}).items():
            method = line["decoding"].partition(",")[0]
            found.setdefault(task, {}).setdefault(method, []).append((speed, 100 * accuracy))
    return found


def figure(found: dict[str, Series], shown: Sequence[str] = ()) -> str:
    """Accuracy against tokens per forward, a panel a task, a curve a method.

    Args:
        found: What ``points`` gives.
        shown: Methods that have a curve; all without any.
    """
    panels = []
    for task, series in found.items():
        curves = {method: curve for method, curve in series.items() if method in shown or not shown}
        xs = [x for curve in curves.values() for x, _ in curve]
        ticks = [tick for tick in TICKS if min(xs) / 2 < tick < max(xs) * 2]
        panels.append(Panel("tokens per forward", f"{task}: right answers, %", curves, ticks, LEVELS))
    return draw(panels)


def read(path: Path) -> list[Line]:
    """The lines of a file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--methods", nargs="*", default=[], help="curves of the figure; all by default")
    args = parser.parse_args()
    lines = read(args.lines)
    if any("held_out" in line for line in lines):
        found = logged_points(lines)
    else:
        found = points(line for line in lines if line["batch"] == lines[0]["batch"])
        show(lines)
    if args.figure:
        args.figure.write_text(figure(found, args.methods), encoding="utf-8")


def show(lines: list[Line]) -> None:
    """Prints a table and the best settings for each batch."""
    for batch in dict.fromkeys(line["batch"] for line in lines):
        part = [line for line in lines if line["batch"] == batch]
        print(f"batch {batch}\n\n{table(part, speed=True)}\n")
        if {"static", "dynamic"} <= {line["method"] for line in part}:
            for method, (setting, total) in best(part).items():
                print(f"{method}, {setting}: {total}, {total.tokens_per_second:.0f} tokens/s")
        print()


if __name__ == "__main__":
    main()
