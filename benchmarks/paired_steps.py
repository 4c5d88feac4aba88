# SPDX-License-Identifier: Apache-2.0
"""The processor time of an engine's steps, of two builds side by side, on a CPU.

    python -m benchmarks.paired_steps BASE_PYTHON [--rounds 20] [--models sdar llada sdar-wide llada-wide]

BASE_PYTHON is the interpreter of the build to compare with; this one runs the build that is judged. Three
engines of the same model run in a process each, two of them from the base, of which one is the control.
Rounds go through them in random order. A round is a batch of requests on a fixed schedule, of which every
step is timed in processor time of its one thread. The ids of all engines must be equal.

``sdar`` and ``llada`` are the bundled checkpoints, so small that a step is mostly the engine's own work.
The wide ones have random weights, about 60 million, and a vocabulary of 32768.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCHES, TOKENS, PROMPT = (1, 8), 64, 32
MODELS = ("sdar", "llada", "sdar-wide", "llada-wide")


def checkpoint(name: str, folder: Path) -> str:
    """The folder of a model, made where it is none of the bundled ones."""
    from safetensors.torch import save_file

    from vllm.v1.diffusion.bundled import bundled_path

    if not name.endswith("-wide"):
        return bundled_path(name)
    path = folder / name
    path.mkdir()
    if name == "llada-wide":
        from benchmarks.full_diffusion import CONFIG, random_weights

        (path / "config.json").write_text(json.dumps(CONFIG))
        save_file(random_weights(2026), path / "model.safetensors", {"format": "pt"})
        return str(path)
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2026)
    shape: dict[str, Any] = {
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "eos_token_id": 32766,
        "tie_word_embeddings": False,
    }
    Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(path)  # type: ignore[no-untyped-call]
    other = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 16}
    (path / "config.json").write_text(json.dumps({**shape, **other, "mask_token_id": 32767}))
    return str(path)


def serve(model: str) -> None:
    """Runs in an engine's process: a batch's size in, a round's times and ids out."""
    import vllm
    from vllm import LLM, DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    llm = LLM(
        model=model,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=PROMPT + TOKENS,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=max(BATCHES) * (PROMPT + TOKENS),
        enable_prefix_caching=False,
        seed=0,
    )
    engine, number = llm.llm_engine, 0
    how = DiffusionParams(algorithm="low_confidence_static", block_length=16, steps=16)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=how.to_extra_args(),
    )
    print(json.dumps({"is": vllm.__file__}), flush=True)
    for line in sys.stdin:
        rng = random.Random(0)
        for _ in range(int(line)):
            number += 1
            prompt: Any = {"prompt_token_ids": [rng.randrange(3, 128) for _ in range(PROMPT)]}
            engine.add_request(str(number), prompt, params)
        times: list[float] = []
        ids: dict[str, list[int]] = {}
        while engine.has_unfinished_requests():
            start = time.thread_time()
            outputs: Any = engine.step()
            times.append(time.thread_time() - start)
            ids |= {one.request_id: list(one.outputs[0].token_ids) for one in outputs if one.finished}
        answers = [ids[key] for key in sorted(ids, key=int)]
        print(json.dumps({"is": {"steps": times[1:], "ids": answers}}), flush=True)


def compare(model: str, pythons: dict[str, str], rounds: int) -> None:
    """Prints a row of the table for each batch."""
    from benchmarks.paired import EngineProcess, median_steps, ratio

    engines = {
        name: EngineProcess(python, __file__, model, model, VLLM_CPU_OMP_THREADS_BIND="nobind")
        for name, python in pythons.items()
    }
    for batch in BATCHES:
        found = {name: engine.ask(str(batch)) for name, engine in engines.items()}  # Warm.
        if len({json.dumps(one["ids"]) for one in found.values()}) > 1:
            raise SystemExit(f"{model}: the builds answer differently.")
        counts = {name: len(one["steps"]) for name, one in found.items()}

        def steps(engine: EngineProcess, line: str = str(batch)) -> list[float]:
            times: list[float] = engine.ask(line)["steps"]
            return times

        medians = median_steps(engines, rounds, steps)
        cells = [f"{1e3 * statistics.median(values):.3f} ms" for values in medians.values()]
        for name in list(engines)[1:]:
            middle, low, high = ratio(medians[name], medians["base"])
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {Path(model).name} | {batch} | {' | '.join(cells)} | {counts} |", flush=True)
    for engine in engines.values():
        engine.close()


def main() -> None:
    """Prints the table of ``docs/performance.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", help="the interpreter of the build to compare with")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        serve(options.engine)
        return
    from benchmarks.kernels.harness import machine

    print(f"{machine('cpu')}; prompt {PROMPT}, {TOKENS} tokens, blocks of 16 in 16 steps\n")
    print("| model | requests | base | base again | this | base again / base | this / base | steps |")
    print("|---" * 8 + "|")
    pythons = {"base": options.base, "base again": options.base, "this": sys.executable}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            compare(checkpoint(name, Path(folder)), pythons, options.rounds)


if __name__ == "__main__":
    main()
