# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a bundled model against tokens per forward, through the engine.

``python -m benchmarks.bundled`` prints the README's table: 500 puzzles of each task, drawn from a seed,
for confidence thresholds and for fixed numbers of denoising steps per block.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from typing import TYPE_CHECKING

from benchmarks.accuracy.methods import sweep
from benchmarks.accuracy.score import solve
from benchmarks.kernels.harness import machine

if TYPE_CHECKING:
    from vllm.v1.diffusion.demo.puzzles import Puzzle
    from vllm.v1.diffusion.request.params import DiffusionParams

MAX_TOKENS = 32


def draw(seed: int, count: int) -> dict[str, list[Puzzle]]:
    """``count`` puzzles of each task."""
    from vllm.v1.diffusion.demo.puzzles import TASKS, make_puzzle

    rngs = {task: random.Random(f"{task} {seed}") for task in TASKS}
    return {task: [make_puzzle(task, rng) for _ in range(count)] for task, rng in rngs.items()}


def ladder() -> dict[str, DiffusionParams]:
    """The ways of decoding, by the name of their row."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    rows = {"default": DiffusionParams()}
    thresholds = sweep("threshold", (0.5, 0.7, 0.9, 0.95, 0.99), algorithm="low_confidence_dynamic")
    steps = sweep("steps", (1, 2, 4, 8, 16), algorithm="low_confidence_static")
    rows |= {f"dynamic, {name}": how for name, how in thresholds.requests().items()}
    return rows | {f"static, {name}": how for name, how in steps.requests().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sdar")
    parser.add_argument("--count", type=int, default=500, help="puzzles of each task")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM
    from vllm.v1.diffusion import bundled_path

    llm = LLM(
        model=bundled_path(args.family),
        dtype=args.dtype,
        max_num_seqs=64,
        disable_log_stats=True,
        enable_prefix_caching=False,
    )
    puzzles = draw(args.seed, args.count)
    dtype = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    print(f"{machine('cpu')}; {dtype}; {args.count} puzzles of each task, seed {args.seed}\n")
    print(f"| decoding | {' | '.join(puzzles)} | tokens per forward | tokens/s |")
    print("|---" * (len(puzzles) + 3) + "|")
    solve(llm, puzzles["add"][:64], next(iter(ladder().values())), MAX_TOKENS)
    for name, how in ladder().items():
        begun = time.perf_counter()
        scores = [solve(llm, batch, how, MAX_TOKENS) for batch in puzzles.values()]
        seconds = time.perf_counter() - begun
        total = sum(scores[1:], scores[0])
        cells = " | ".join(map(str, scores))
        rate = f"{total.tokens / total.forwards:.2f} | {total.tokens / seconds:.0f}"
        print(f"| {name} | {cells} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
