# SPDX-License-Identifier: Apache-2.0
"""Memory pressure on every family's small checkpoint, each engine in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests import warm

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 192,
    "max_num_seqs": 16,
    "block_size": 32,
    "num_gpu_blocks_override": 10,
    "disable_log_stats": False,
    "seed": 0,
}
OWN: dict[str, dict[str, Any]] = {
    # A layer type has KV blocks of its own.
    "DiffusionGemma": {"num_gpu_blocks_override": 20, "diffusion_config": {"block_length": 32}},
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "filtered": {"temperature": 0.7, "top_p": 0.9, "top_k": 12},
    "few_steps": {"temperature": 0.0, "extra_args": {"diffusion_steps": 4}},
    "threshold": {"extra_args": {"diffusion_algorithm": "threshold", "diffusion_threshold": 0.3}},
    "static": {"temperature": 0.0, "extra_args": {"diffusion_algorithm": "low_confidence_static"}},
    "penalised": {"temperature": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.3},
    "stopped": {"temperature": 1.0, "ignore_eos": False, "stop_token_ids": list(range(20, 40))},
    "logprobs": {"temperature": 0.0, "logprobs": 2},
    "grammar": {"temperature": 0.0, "ignore_eos": False},
}
GRAMMAR = "[a-z0-9 ]{4,40}"


def parameters(kind: str, number: int, max_tokens: int) -> Any:
    """The n-th request's, of a kind."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given = {"temperature": 1.0, "ignore_eos": True, **KINDS[kind]}
    if kind == "grammar":
        given["structured_outputs"] = StructuredOutputsParams(regex=GRAMMAR)
    return SamplingParams(max_tokens=max_tokens, seed=number, **given)


def served(family: str, folder: str, count: int) -> dict[str, Any]:
    """Runs requests of every kind that the family takes, alone and all at a time."""
    from vllm import LLM

    llm = LLM(folder, **SETTINGS | OWN.get(family, {}))
    rng = random.Random(family)
    vocabulary = min(400, llm.model_config.get_vocab_size() - 20)

    def ids_of(requests: list[tuple[str, int, list[int], int]]) -> list[tuple[list[int], str | None]]:
        prompts = [{"prompt_token_ids": prompt} for _, _, prompt, _ in requests]
        how = [parameters(kind, number, longest) for kind, number, _, longest in requests]
        ended = llm.generate(prompts, how, use_tqdm=False)  # type: ignore[arg-type]
        return [(list(o.outputs[0].token_ids), o.outputs[0].finish_reason) for o in ended]

    refused: dict[str, str] = {}
    for kind in KINDS:
        try:
            ids_of([(kind, 0, [50, 51], 8)])
        except ValueError as error:
            refused[kind] = str(error)[:160]
    kinds = [kind for kind in KINDS if kind not in refused]
    requests = []
    for number in range(count):
        prompt = [rng.randrange(40, vocabulary) for _ in range(rng.randint(1, 60))]
        requests.append((kinds[number % len(kinds)], number, prompt, rng.choice([20, 64, 100, 128])))
    begun = time.monotonic()
    alone = [ids_of([request])[0] for request in requests]
    between = time.monotonic()
    counted = _preemptions(llm)
    batched = ids_of(requests)
    ends: dict[str, int] = {}
    for _, reason in alone:
        ends[str(reason)] = ends.get(str(reason), 0) + 1
    different = [n for n, (a, b) in enumerate(zip(alone, batched, strict=True)) if a != b]
    made = {
        "requests": count,
        "preemptions": _preemptions(llm) - counted,
        "different_ids": len(different),
        "of_kinds": sorted({requests[n][0] for n in different}),
        "cache_empty": llm.reset_prefix_cache(),
        "ends": ends,
        "refused_kinds": refused,
        "seconds": [round(between - begun), round(time.monotonic() - between)],
    }
    llm.llm_engine.engine_core.shutdown()
    return made


def _preemptions(llm: Any) -> int:
    return sum(int(m.value) for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All families, one after the other; ``--only`` names one."""
    from tests.engine.published import GOLDEN, PUBLISHED

    warm.install()
    writers: dict[str, Any] = {name: one.write for name, one in PUBLISHED.items()}
    writers["DiffusionGemma"] = lambda _: GOLDEN / "diffusion_gemma"
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"} | dict(os.environ)
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # Starts in half the time.
    made: dict[str, Any] = {}
    for number, (name, write) in enumerate(writers.items()):
        if args.only not in (None, name):
            continue
        checkpoint = write(folder / str(number))
        given = [name, str(checkpoint), str(args.requests)]
        done = warm.run("tests.reliability.families", given, env=environment, timeout=3600)
        if done.returncode:
            made[name] = {"error": done.stderr[-3000:], "failed": True}
        else:
            one = json.loads(done.stdout.splitlines()[-1])
            # Bidirectional requests wait for KV blocks and are not preempted: 0 is no failure.
            failed = one["different_ids"] or not one["cache_empty"]
            made[name] = one | {"failed": bool(failed)}
        print(name, json.dumps(made[name]), file=sys.stderr, flush=True)
    return {"families": made, "failed": not made or any(one["failed"] for one in made.values())}


if __name__ == "__main__":
    print(json.dumps(served(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
