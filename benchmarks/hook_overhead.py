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
import os
import random
import shutil
import statistics
import subprocess
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


class Engine:
    """An engine in a process of its own, which times the steps of a round when told to."""

    def __init__(self, tree: Path | None, model: Path) -> None:
        """Starts it from a tree, or as installed where that is None."""
        environment = {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            "OMP_NUM_THREADS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        if tree is not None:
            environment["PYTHONPATH"] = str(tree)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--engine", str(model)],
            env=environment,
            cwd=tree or model,  # where the repository's vllm/ is not in the way
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = str(self._read())

    def steps(self) -> list[float]:
        """Processor seconds of each step of a round."""
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        return [float(seconds) for seconds in self._read()]

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)["is"]
        raise SystemExit("an engine ended: see its output above")


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


def interval(ratios: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


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

    work = options.work.resolve()
    model = checkpoint(work)
    trees = {"stock": stock_tree(work), "stock again": stock_tree(work), "fork": options.fork}
    engines = {name: Engine(tree, model) for name, tree in trees.items()}
    for engine in (*engines.values(), *engines.values()):
        engine.steps()  # Warm.
    medians: dict[str, list[float]] = {name: [] for name in engines}
    rng = random.Random(0)
    for _ in range(options.rounds):
        for name in rng.sample(list(engines), len(engines)):
            medians[name].append(statistics.median(engines[name].steps()))
    for engine in engines.values():
        engine.close()
    print(f"{machine('cpu')}; stock {engines['stock'].version}, fork {engines['fork'].version}")
    print(f"{options.rounds} rounds of {REQUESTS} requests of {TOKENS} tokens\n")
    print("| | median step |\n|---|---|")
    for name, values in medians.items():
        print(f"| {name} | {1e3 * statistics.median(values):.3f} ms |")
    for name in ("stock again", "fork"):
        ratios = [one / stock for stock, one in zip(medians["stock"], medians[name], strict=True)]
        low, high = interval(ratios)
        print(f"| {name} / stock | {statistics.median(ratios):.4f} (95 %: {low:.4f} to {high:.4f}) |")


if __name__ == "__main__":
    main()
