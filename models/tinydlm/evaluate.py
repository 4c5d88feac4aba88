"""Measures accuracy against tokens per forward: ``python -m tinydlm.evaluate FOLDER``."""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .checkpoint import load
from .decoding import Decoding, generate
from .network import Network
from .problems import TASKS, check, held_out


@dataclass(frozen=True)
class Score:
    """Result of one task under one way of decoding."""

    task: str
    accuracy: float
    tokens_per_forward: float
    forwards_per_answer: float


def score(network: Network, task: str, prompts: list[str], decoding: Decoding, max_tokens: int) -> Score:
    """Decodes ``prompts`` and checks every answer."""
    right, useful, forwards = 0, 0.0, 0
    for start in range(0, len(prompts), 250):
        part = prompts[start : start + 250]
        output = generate(network, part, max_tokens, decoding)
        right += sum(map(check, part, output.texts))
        forwards += sum(output.forwards)
        useful += output.tokens_per_forward * sum(output.forwards)
    return Score(task, right / len(prompts), useful / forwards, forwards / len(prompts))


def score_all(
    network: Network,
    count: int,
    seed: int,
    decoding: Decoding,
    max_tokens: int = 32,
    reserved_only: bool = False,
) -> list[Score]:
    """Scores ``count`` held-out prompts of every task; ``reserved_only`` concerns Sudoku alone."""
    return [
        score(
            network,
            task,
            held_out(task, count, seed, reserved_only and task == "sudoku"),
            decoding,
            max_tokens,
        )
        for task in TASKS
    ]


def ladder(family: str) -> list[tuple[str, Decoding]]:
    """The ways of decoding that the table shows."""
    thresholds = (0.5, 0.7, 0.8, 0.9, 0.95)
    if family == "sdar":
        rows = [(f"dynamic, threshold {t}", Decoding("dynamic", 16, t)) for t in thresholds]
        return rows + [(f"static, steps {s}", Decoding("static", s)) for s in (1, 2, 4, 8, 16)]
    rows = []
    for block in (8, 16, 32):
        for steps in (1, 2, 4, block):
            rows.append((f"static, block {block}, steps {steps}", Decoding("static", steps, 0, block)))
    return rows + [(f"dynamic, block 32, threshold {t}", Decoding("dynamic", 32, t, 32)) for t in thresholds]


def table(network: Network, count: int, seed: int, max_tokens: int, rows: list[tuple[str, Decoding]]) -> str:
    """A Markdown table: accuracy and tokens per forward of each task, one way of decoding a row."""
    lines = [
        "| decoding | " + " | ".join(TASKS) + " | tokens per forward |",
        "|---" * (len(TASKS) + 2) + "|",
    ]
    for name, decoding in rows:
        scores = score_all(network, count, seed, decoding, max_tokens)
        cells = [f"{100 * s.accuracy:.1f} % ({s.tokens_per_forward:.1f})" for s in scores]
        tokens = sum(s.tokens_per_forward * s.forwards_per_answer for s in scores)
        mean = tokens / sum(s.forwards_per_answer for s in scores)
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and failures under the default decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500, help="prompts of each task")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--default-only", action="store_true", help="only threshold 0.9, as JSON")
    parser.add_argument(
        "--reserved", action="store_true", help="only Sudoku puzzles that training never shows"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 instead of float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    network = load(options.folder, options.device)
    if options.bfloat16:
        network = network.to(torch.bfloat16)
    if options.default_only:
        begin = time.perf_counter()
        scores = score_all(
            network, options.count, options.seed, Decoding(), options.max_tokens, options.reserved
        )
        for row in scores:
            print(json.dumps(asdict(row)))
        print(f"{time.perf_counter() - begin:.1f} s")
        return
    rows = ladder(network.config.family)
    print(table(network, options.count, options.seed, options.max_tokens, rows))


if __name__ == "__main__":
    main()
