# SPDX-License-Identifier: Apache-2.0
"""LLaDA-8B's shape, length 128, block 32: the engine and the published way of looping, on one GPU.

    python -m benchmarks.gpu.llada --cache none dual --batch 1 8 --steps 32 8

``--steps`` are a block's: 32 and 8 are 128 and 32 for the canvas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.gpu.engine import SEED, Workload, run, start, stop
from benchmarks.gpu.machine import describe, median_ms


def reference(batches: list[int], schedules: list[int], tokens: int, block: int) -> None:
    """Times the plain loop, and its forward alone, replayed from a graph."""
    import torch

    from benchmarks.gpu.reference_loop import PlainLlada

    with torch.inference_mode():
        model = PlainLlada()
        generator = torch.Generator("cuda").manual_seed(SEED)
        for batch in batches:
            prompt = torch.randint(1000, 100_000, (batch, 128), device="cuda", generator=generator)
            ids = torch.cat((prompt, prompt.new_full((batch, tokens), model.mask)), 1)
            for _ in range(2):
                model.forward(ids)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model.forward(ids)
            forward = median_ms(graph.replay, 10, 2)
            del graph
            for steps in schedules:
                times = []
                for _ in range(3):
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    model.generate(prompt, tokens, block, steps)
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - begin)
                seconds = statistics.median(times[1:])
                _say("reference loop", batch, steps, tokens * batch / seconds, forward)


def engine(cache: str, batches: list[int], schedules: list[int], settings: dict[str, Any]) -> None:
    """Times the engine with one cache mode."""
    llm = start(
        "llada-8b",
        diffusion_config={"block_length": 32, "cache": cache},
        **{"max_num_seqs": max(batches), "max_model_len": 512} | settings,
    )
    for batch in batches:
        for steps in schedules:
            timing = run(llm, Workload(batch, 128, 128, 32, steps))
            _say(f"engine, cache {cache}", batch, steps, timing.tokens_per_second, timing.step_ms)
    stop(llm)


def _say(who: str, batch: int, steps: int, rate: float, forward_ms: float) -> None:
    line = {"who": who, "batch": batch, "steps": steps, "tokens_per_second": round(rate, 1)}
    print(json.dumps(line | {"forward_ms": round(forward_ms, 3)}), flush=True)


def main() -> None:
    """Runs what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", nargs="*", default=["none", "dual"], choices=["none", "prefix", "dual"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 8])
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    chosen = parser.parse_args()
    print(json.dumps(describe()), flush=True)
    for cache in chosen.cache:
        engine(cache, chosen.batch, chosen.steps, chosen.settings)
    if not chosen.no_reference:
        reference(chosen.batch, chosen.steps, 128, 32)


if __name__ == "__main__":
    main()
