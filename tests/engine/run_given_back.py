# SPDX-License-Identifier: Apache-2.0
"""Runs a mixture of requests and prints what the workers hold afterwards and did not before.

Of an engine in one process, also of what there is more after a third time than after the second. Standard
input holds the engine's arguments, as JSON.
"""

from __future__ import annotations

import collections
import gc
import json
import sys
import time
from typing import Any

from tests.engine.cases import random_prompt


def read(worker: Any, first: bool) -> tuple[list[str], bool]:
    """In a worker: attributes that differ from those of the first call; whether it compiled grammars."""
    from tests.sampling.held import differences, held_by

    runner = worker.model_runner
    state = runner.model_state
    # What is on the device is cleared with the next step.
    state.canvases.apply_added(runner.req_states)
    left_out = {"graph_sequences", "_prefill_attention"}
    held: dict[str, Any] = {}
    for name, value in vars(state).items():
        if name not in left_out:
            held |= held_by(value, name)
    held = {path: value for path, value in held.items() if "_compiler" not in path}
    if first:
        runner.held_first = held
    assert len(held) > 20
    # The first step makes room in the attention backend, for good.
    changed = [name for name in differences(runner.held_first, held) if name != "_attention_begun"]
    return changed, "_manager" in vars(state.grammars._compiler)


def count(worker: Any) -> dict[str, int]:
    """In a worker: how many tensors and objects of vLLM's there are in its process, by class."""
    gc.collect()
    names = [f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects()]
    return collections.Counter(
        n for n in names if n.startswith(("torch.Tensor", "torch.nn.", "vllm.", "xgrammar"))
    )


def mixture(llm: Any) -> None:
    """Every kind of request that leaves something with the workers, in a batch and one after the other."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given: list[dict[str, Any]] = [
        {"extra_args": {"diffusion_infill": "t1 t2<|hole:9|>t3<|hole:4|>"}},
        {
            "extra_args": {
                "diffusion_seed_canvas": [1, 2, 3, 4],
                "diffusion_pinned": [3],
                "diffusion_trace": True,
            }
        },
        {"structured_outputs": StructuredOutputsParams(choice=["t3 t4 t5", "t5 t6"]), "max_tokens": 20},
        {"bad_words": ["t1 t2", "t3", "t5 t6 t7"], "logprobs": 3},
        {"extra_args": {"diffusion_max_steps": 2}, "logit_bias": {3: 4.0}},
        {"extra_args": {"diffusion_exit_threshold": 0.5}, "min_tokens": 5},
        {"extra_args": {"diffusion_algorithm": "credit"}, "repetition_penalty": 1.4},
        {"extra_args": {"diffusion_algorithm": "edit"}, "temperature": 0.7, "top_k": 5},
        {"extra_args": {"diffusion_algorithm": "confidence_threshold"}, "max_tokens": 1},
        {"stop_token_ids": list(range(200)), "max_tokens": 64},
        {},
    ]
    params = [SamplingParams(**{"temperature": 0.0, "max_tokens": 33} | one) for one in given]
    prompts = [{"prompt_token_ids": list(random_prompt(5 + 3 * i, i))} for i in range(len(params))]
    llm.generate(prompts, params, use_tqdm=False)
    for prompt, one in zip(prompts[:5], params[:5], strict=True):
        llm.generate(prompt, one, use_tqdm=False)


def left(llm: Any) -> list[tuple[list[str], bool]]:
    """What :func:`read` gives, of each worker, once the last requests' ends have come to all."""
    for _ in range(100):
        # The workers are informed of the last requests' end with one more step.
        if not hasattr(llm.llm_engine.engine_core, "resources"):
            llm.llm_engine.engine_core.get_output()
        results: list[tuple[list[str], bool]] = llm.collective_rpc(read, args=(False,))
        if not any(left for left, _ in results):
            break
        time.sleep(0.1)
    return results


def main() -> None:
    """Reads, runs, prints the result as the last line."""
    from vllm import LLM

    llm = LLM(**json.load(sys.stdin))
    llm.collective_rpc(read, args=(True,))
    mixture(llm)
    results = left(llm)
    more: list[dict[str, int]] = []
    if not hasattr(llm.llm_engine.engine_core, "resources"):  # All of the engine is in this process.
        counts = []
        for _ in range(2):
            mixture(llm)
            left(llm)
            counts.append([collections.Counter(one) for one in llm.collective_rpc(count)])
        more = [dict(after - before) for before, after in zip(*counts, strict=True)]
    llm.llm_engine.engine_core.shutdown()
    print(json.dumps({"left": results, "more": more}), flush=True)


if __name__ == "__main__":
    main()
