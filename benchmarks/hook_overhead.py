# SPDX-License-Identifier: Apache-2.0
"""What the generation-loop hook costs where it is not used: paired with stock vLLM, on a CPU.

    python -m benchmarks.hook_overhead [--rounds 40] [--work build/hook_overhead]

Three engines of the same tiny Qwen3 run side by side, each in one process: two from the pinned release
as it is, of which one is the control, and one from the fork. Rounds go through them in random order; a
round is 8 requests of 64 tokens, of which every step is timed: in processor time of its one thread, so
that what else the machine does matters little. The model is so small that a step is mostly the
engine's own work: on a real one the same microseconds are a smaller share.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUESTS, TOKENS = 8, 64


def stock_tree(work: Path) -> Path:
    """The pinned release as its CPU wheel has it, unpatched."""
    from build_support.fetch import fetch_all
    from build_support.pin import load_pin

    tree = work / "stock"
    if not tree.exists():
        _, wheel = fetch_all(load_pin(ROOT), "cpu")
        part = work / "part"
        shutil.rmtree(part, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part)
        part.rename(tree)
    return tree


def checkpoint(work: Path) -> Path:
    """A tiny Qwen3 with random weights."""
    folder = work / "qwen3"
    if not (folder / "config.json").exists():
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        shape = Qwen3Config(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
        )
        Qwen3ForCausalLM(shape).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def serve(model: str) -> None:
    """Runs in an engine's process: a line in, a round's times out."""
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=REQUESTS,
        enable_prefix_caching=False,
        seed=0,
    )
    engine, rng, number = llm.llm_engine, random.Random(0), 0
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    print(json.dumps({"is": vllm.__version__}), flush=True)
    for _ in sys.stdin:
        for _ in range(REQUESTS):
            number += 1
            prompt: Any = {"prompt_token_ids": [rng.randrange(256) for _ in range(16)]}
            engine.add_request(str(number), prompt, params)
        times = []
        while engine.has_unfinished_requests():
            start = time.thread_time()
            engine.step()
            times.append(time.thread_time() - start)
        print(json.dumps({"is": times[1:]}), flush=True)  # The first is the prompts'.


def main() -> None:
    """Prints the table of ``docs/performance.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "hook_overhead")
    parser.add_argument("--fork", type=Path, help="a tree of the fork; unset: what is installed")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        serve(options.engine)
        return
    from benchmarks.kernels.harness import machine
    from benchmarks.paired import EngineProcess, median_steps, ratio

    work = options.work.resolve()
    model = checkpoint(work)
    trees = {"stock": stock_tree(work), "stock again": stock_tree(work), "fork": options.fork}
    engines: dict[str, EngineProcess] = {}
    for name, tree in trees.items():
        path = {"PYTHONPATH": str(tree)} if tree else {}
        folder = str(tree or model)
        engines[name] = EngineProcess(
            sys.executable, __file__, str(model), folder, VLLM_CPU_OMP_THREADS_BIND="0", **path
        )
    for engine in (*engines.values(), *engines.values()):
        engine.ask("round")  # Warm.
    medians = median_steps(engines, options.rounds, lambda engine: engine.ask("round"))
    for engine in engines.values():
        engine.close()
    print(f"{machine('cpu')}; stock {engines['stock'].said}, fork {engines['fork'].said}")
    print(f"{options.rounds} rounds of {REQUESTS} requests of {TOKENS} tokens\n")
    print("| | median step |\n|---|---|")
    for name, values in medians.items():
        print(f"| {name} | {1e3 * statistics.median(values):.3f} ms |")
    for name in ("stock again", "fork"):
        middle, low, high = ratio(medians[name], medians["stock"])
        print(f"| {name} / stock | {middle:.4f} (95 %: {low:.4f} to {high:.4f}) |")


if __name__ == "__main__":
    main()
