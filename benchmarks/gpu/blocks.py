# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of a block-causal shape with a fixed schedule, by batch and steps.

    python -m benchmarks.gpu.blocks --shape sdar-8b --block 4 --steps 4 2 --batch 1 16 64 256

``--candidates 0 12`` measures exact rows, then elastic ones with ``row_candidates`` 12, in the same engine.

``--settings '{"tensor_parallel_size": 2}'`` spreads it over two GPUs. ``--profile 1 64`` adds a line for each
of these batches: where a step's time goes on the first rank, in microseconds (``benchmarks.gpu.trace``).

With more than one ``--tokens`` each line after the first has ``added_step_ms``: what a step more
took, the difference to the line before. A request's beginning and end have no part in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine import Timing, Workload, profile, profiler_settings, run, start
from benchmarks.gpu.machine import describe
from benchmarks.gpu.trace import load_trace


def main() -> None:
    """Runs one engine and prints a line a workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2], help="0: autoregressive")
    parser.add_argument("--candidates", type=int, nargs="+", default=[0], help="0: exact rows")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, nargs="+", default=[128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128], help="new tokens, ascending")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", type=json.loads, default={}, help="members of config.json, JSON")
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="batches to profile")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"max_num_seqs": max(chosen.batch)} | chosen.settings
    settings.setdefault("max_model_len", max(1024, max(chosen.prompt) + max(chosen.tokens) + chosen.block))
    if chosen.steps != [0] and "diffusion_config" not in settings:
        settings["diffusion_config"] = {"block_length": chosen.block}
    traces = Path(tempfile.mkdtemp(prefix="traces-"))
    if chosen.profile:
        settings |= profiler_settings(traces)
    llm = start(chosen.shape, chosen.config, **settings)
    print(json.dumps(describe()), flush=True)
    every = itertools.product(chosen.prompt, chosen.steps, chosen.batch, chosen.candidates)
    for prompt, steps, batch, candidates in every:
        shorter: Timing | None = None
        for tokens in chosen.tokens:
            work = Workload(batch, prompt, tokens, chosen.block, steps or None, candidates or None)
            timing = run(llm, work, chosen.repeats)
            result: dict[str, Any] = {
                "shape": chosen.shape,
                "block": chosen.block if steps else 1,
                "steps": steps,
                **({"row_candidates": candidates} if candidates else {}),
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
    for batch in chosen.profile:
        steps = chosen.steps[0]
        candidates = chosen.candidates[0] or None
        work = Workload(batch, chosen.prompt[0], chosen.tokens[0], chosen.block, steps or None, candidates)
        found = load_trace(profile(llm, work, traces, f"steps{steps}-batch{batch}"))
        print(json.dumps({"shape": chosen.shape, "profile": True, "steps": steps, "batch": batch} | found))


if __name__ == "__main__":
    main()
