# SPDX-License-Identifier: Apache-2.0
"""Tokens a second as the batch grows, and as the prompts do, of a block-causal shape with a fixed schedule.

python -m benchmarks.gpu.growth --out growth.jsonl
python -m benchmarks.gpu.plot growth.jsonl docs/growth.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.gpu.engine import Workload, run, start
from benchmarks.gpu.machine import describe

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROMPTS = (128, 512, 2048, 4096, 8192, 16384)
GRAPHS = (32, 64, 128, 256, 512, 1024, 2048)


def main() -> None:
    """Runs one engine and writes a line a workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch-of-prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, required=True, help="append the lines to this file")
    chosen = parser.parse_args()
    llm = start(
        chosen.shape,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=max(BATCHES) * chosen.block,
        max_model_len=max(PROMPTS) + chosen.tokens,
        diffusion_config={"block_length": chosen.block},
        compilation_config={"cudagraph_capture_sizes": list(GRAPHS)},
    )
    print(json.dumps(describe()), flush=True)
    grid = [(batch, PROMPTS[0]) for batch in BATCHES]
    grid += [(batch, prompt) for batch in chosen.batch_of_prompts for prompt in PROMPTS[1:]]
    for batch, prompt in grid:
        work = Workload(batch, prompt, chosen.tokens, chosen.block, chosen.steps)
        timing = run(llm, work, chosen.repeats)
        line = {
            "shape": chosen.shape,
            "block": chosen.block,
            "steps": chosen.steps,
            "batch": batch,
            "prompt": prompt,
            "tokens": chosen.tokens,
            "tokens_per_second": round(timing.tokens_per_second, 1),
            "step_ms": round(timing.step_ms, 3),
        }
        print(json.dumps(line), flush=True)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
