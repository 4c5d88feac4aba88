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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.kernels.harness import machine

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.v1.diffusion.demo.puzzles import Puzzle
    from vllm.v1.diffusion.request.params import DiffusionParams

MAX_TOKENS = 32


@dataclass(frozen=True)
class Score:
    """Puzzles of one kind under one way of decoding.

    ``tokens`` counts the end token; ``forwards`` are the requests' denoising steps.
    """

    puzzles: int
    right: int
    tokens: int
    forwards: int

    def __add__(self, other: Score) -> Score:
        return Score(
            self.puzzles + other.puzzles,
            self.right + other.right,
            self.tokens + other.tokens,
            self.forwards + other.forwards,
        )

    def __str__(self) -> str:
        return f"{100 * self.right / self.puzzles:.1f} % ({self.tokens / self.forwards:.1f})"


def solve(llm: LLM, puzzles: list[Puzzle], how: DiffusionParams) -> Score:
    """Runs puzzles in one batch, everything but ``how`` as the model's defaults say."""
    params = llm.get_default_sampling_params()
    params.max_tokens = MAX_TOKENS
    params.extra_args = how.to_extra_args()
    outputs = llm.generate([p.prompt for p in puzzles], params, use_tqdm=False)
    done: list[Any] = [output.outputs[0] for output in outputs]
    return Score(
        len(puzzles),
        sum(p.is_right(d.text) for p, d in zip(puzzles, done, strict=True)),
        sum(len(d.token_ids) for d in done),
        sum(d.diffusion.steps for d in done),
    )


def draw(seed: int, count: int) -> dict[str, list[Puzzle]]:
    """``count`` puzzles of each task."""
    from vllm.v1.diffusion.demo.puzzles import TASKS, make_puzzle

    rngs = {task: random.Random(f"{task} {seed}") for task in TASKS}
    return {task: [make_puzzle(task, rng) for _ in range(count)] for task, rng in rngs.items()}


def ladder() -> dict[str, DiffusionParams]:
    """The ways of decoding, by the name of their row."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    rows = {"default": DiffusionParams()}
    for threshold in (0.5, 0.7, 0.9, 0.95, 0.99):
        rows[f"dynamic, threshold {threshold}"] = DiffusionParams(
            algorithm="low_confidence_dynamic", threshold=threshold
        )
    for steps in (1, 2, 4, 8, 16):
        rows[f"static, {steps} step{'s' * (steps > 1)}"] = DiffusionParams(
            algorithm="low_confidence_static", steps=steps
        )
    return rows


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
    solve(llm, puzzles["add"][:64], next(iter(ladder().values())))
    for name, how in ladder().items():
        begun = time.perf_counter()
        scores = [solve(llm, batch, how) for batch in puzzles.values()]
        seconds = time.perf_counter() - begun
        total = sum(scores[1:], scores[0])
        cells = " | ".join(map(str, scores))
        rate = f"{total.tokens / total.forwards:.2f} | {total.tokens / seconds:.0f}"
        print(f"| {name} | {cells} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
