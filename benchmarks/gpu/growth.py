# SPDX-License-Identifier: Apache-2.0
"""Tokens per second as the batch grows, and as the prompts do, with batches and graphs as the engine chooses.

python -m benchmarks.gpu.growth --shape sdar-8b --out growth.jsonl
python -m benchmarks.gpu.growth --shape llada-8b --cache dual --no-prompts --out growth.jsonl
python -m benchmarks.gpu.plot growth.jsonl docs/growth.svg

A batch at which fewer tokens per second are written than at the one before is named at the end.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine import Workload, run, start
from benchmarks.gpu.machine import describe

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROMPTS = (128, 512, 2048, 4096, 8192, 16384)
OF_LONG_PROMPTS = (1, 8)
"""Batches in which prompts grow."""
SLOW = 128
"""Batches from this on are run once after a warm run, smaller ones three times."""


def grid(prompts: bool) -> list[tuple[int, int]]:
    """Batches and prompt lengths to run."""
    short = [(batch, PROMPTS[0]) for batch in BATCHES]
    return short + [(batch, prompt) for batch in OF_LONG_PROMPTS for prompt in PROMPTS[1:] if prompts]


def drops(rates: dict[int, float], noise: float = 0.03) -> list[str]:
    """Where tokens per second fall from one batch to the next, by more than noise."""
    return [
        f"{one} to {other}: {rates[other] / rates[one]:.2f}"
        for one, other in pairwise(sorted(rates))
        if rates[other] < (1 - noise) * rates[one]
    ]


def main() -> None:
    """Runs one engine and writes a line a workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--cache", choices=["none", "prefix", "dual"], help="of a bidirectional shape")
    parser.add_argument("--no-prompts", action="store_true", help="let the batch grow only")
    parser.add_argument("--out", type=Path, required=True, help="append the lines to this file")
    chosen = parser.parse_args()
    diffusion: dict[str, Any] = {"block_length": chosen.block}
    if chosen.cache:
        diffusion["cache"] = chosen.cache
    llm = start(
        chosen.shape,
        # What upstream sets for this device, as a server has it.
        max_num_batched_tokens=None,
        max_model_len=(1024 if chosen.no_prompts else max(PROMPTS) + chosen.tokens),
        diffusion_config=diffusion,
    )
    print(json.dumps(describe()), flush=True)
    rates: dict[int, float] = {}
    for batch, prompt in grid(not chosen.no_prompts):
        work = Workload(batch, prompt, chosen.tokens, chosen.block, chosen.steps)
        timing = run(llm, work, 1 if batch >= SLOW or prompt > PROMPTS[0] else 3)
        if prompt == PROMPTS[0]:
            rates[batch] = timing.tokens_per_second
        line = {
            "shape": chosen.shape,
            "block": chosen.block,
            "steps": chosen.steps,
            "cache": chosen.cache,
            "batch": batch,
            "prompt": prompt,
            "tokens": chosen.tokens,
            "tokens_per_second": round(timing.tokens_per_second, 1),
            "step_ms": round(timing.step_ms, 3),
        }
        print(json.dumps(line), flush=True)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps({"shape": chosen.shape, "drops": drops(rates)}), flush=True)


if __name__ == "__main__":
    main()
