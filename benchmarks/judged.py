# SPDX-License-Identifier: Apache-2.0
"""Accuracy of ways of decoding against tokens per forward, on the checkpoint made to judge them.

``python -m benchmarks.judged --lines accuracy.jsonl`` runs held-out problems of every task under every
setting of every method, through the engine, and appends a JSON line a task. ``benchmarks.accuracy.report``
makes tables and curves of the lines.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import Method, chosen
from benchmarks.accuracy.report import best, read
from benchmarks.accuracy.score import Score, solve
from benchmarks.kernels.harness import machine
from models.tinydlm.reasoning import TASKS, held_out

CHECKPOINT = Path(__file__).parents[1] / "models" / "reasoner"
MAX_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--lines", type=Path, help="file to append to, JSON lines")
    parser.add_argument("--count", type=int, default=100, help="held-out problems of each task")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--methods", nargs="*", default=[], help="all by default")
    parser.add_argument("--batches", type=int, nargs="*", default=[64], help="requests at a time")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--loop", help="generation loop of the engine; the model's own by default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--eager", action="store_true", help="compile nothing: a quicker start")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    parser.add_argument("--best-of", type=Path, help="lines; only each method's best setting among them")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    methods = chosen(args.methods, args.block, args.loop)
    if args.best_of:
        settings = {method: setting for method, (setting, _) in best(read(args.best_of)).items()}
        methods = {
            name: Method({settings[name]: method.settings[settings[name]]})
            for name, method in methods.items()
            if name in settings
        }
    from vllm import LLM, DiffusionParams  # type: ignore[attr-defined]  # lazy
    from vllm.platforms import current_platform

    llm = LLM(
        model=args.model,
        dtype=args.dtype,
        max_num_seqs=max(args.batches),
        max_model_len=512,
        disable_log_stats=True,
        enable_prefix_caching=False,
        enforce_eager=args.eager,
        **({"generation_loop": args.loop} if args.loop else {}) | args.settings,
    )
    problems = {task: held_out(task, args.count, args.seed) for task in TASKS}
    common: dict[str, Any] = {
        "machine": machine("cuda" if current_platform.is_cuda() else "cpu"),
        "dtype": str(llm.llm_engine.model_config.dtype).removeprefix("torch."),
        "seed": args.seed,
    }
    for batch in args.batches:
        solve(llm, problems["story"][:batch], DiffusionParams(), MAX_TOKENS)
        for method, ways in methods.items():
            for setting, how in ways.requests().items():
                scores = {task: solve(llm, part, how, MAX_TOKENS, batch) for task, part in problems.items()}
                for task, score in scores.items():
                    line = {"method": method, "setting": setting, "task": task, "batch": batch}
                    line |= vars(score) | common | {"request": how.to_extra_args()}
                    if args.lines:
                        with args.lines.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                total = sum(scores.values(), Score(0, 0, 0, 0))
                cells = ", ".join(f"{task} {score}" for task, score in scores.items())
                print(f"batch {batch}, {method}, {setting}: {cells}; all {total}", flush=True)


if __name__ == "__main__":
    main()
