# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of a block-causal shape with a fixed schedule, by batch and steps.

    python -m benchmarks.gpu.blocks --shape sdar-8b --block 4 --steps 4 2 --batch 1 16 64 256

With more than one ``--tokens`` each line after the first has ``added_step_ms``: what a step more
took, the difference to the line before. A request's beginning and end have no part in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine import Timing, Workload, run, start
from benchmarks.gpu.machine import describe


def main() -> None:
    """Runs one engine and prints a line a workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2], help="0: autoregressive")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, nargs="+", default=[128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128], help="new tokens, ascending")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"max_num_seqs": max(chosen.batch)} | chosen.settings
    settings.setdefault("max_model_len", max(1024, max(chosen.prompt) + max(chosen.tokens) + chosen.block))
    if chosen.steps != [0] and "diffusion_config" not in settings:
        settings["diffusion_config"] = {"block_length": chosen.block}
    changes = {"num_hidden_layers": chosen.layers} if chosen.layers else None
    llm = start(chosen.shape, changes, **settings)
    print(json.dumps(describe()), flush=True)
    for prompt, steps, batch in itertools.product(chosen.prompt, chosen.steps, chosen.batch):
        shorter: Timing | None = None
        for tokens in chosen.tokens:
            timing = run(llm, Workload(batch, prompt, tokens, chosen.block, steps or None), chosen.repeats)
            result: dict[str, Any] = {
                "shape": chosen.shape,
                "block": chosen.block if steps else 1,
                "steps": steps,
                "batch": batch,
                "prompt": prompt,
                "tokens": tokens,
                "tokens_per_second": round(timing.tokens_per_second, 1),
                "step_ms": round(timing.step_ms, 3),
                "forwards": timing.forwards,
                "repeats": timing.repeats,
            }
            if shorter:
                added = (timing.seconds - shorter.seconds) / (timing.forwards - shorter.forwards)
                result["added_step_ms"] = round(1e3 * added, 3)
            shorter = timing
            line = json.dumps(result)
            print(line, flush=True)
            if chosen.out:
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
