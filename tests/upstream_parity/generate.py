# SPDX-License-Identifier: Apache-2.0
"""Runs requests in whichever vLLM this interpreter finds; JSON in, JSON out.

Started by ``compare.py`` once for each tree, so it uses nothing but vLLM's public interface.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Generates what a task asks for.

    Args:
        task: ``engine`` (arguments of ``LLM``), ``rounds`` (each a list of batches of prompts) and
            ``sampling`` (arguments of ``SamplingParams``).

    Returns:
        The version, and for every round the output ids of its prompts in order, and how many prompt
        tokens came from the prefix cache.
    """
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(**task["engine"])
    rounds = []
    for batches in task["rounds"]:
        ids, cached = [], 0
        for batch in batches:
            prompts: Any = [{"prompt_token_ids": prompt} for prompt in batch]
            outputs = llm.generate(
                prompts,
                SamplingParams(detokenize=False, **task["sampling"]),
                use_tqdm=False,
            )
            ids += [list(output.outputs[0].token_ids) for output in outputs]
            cached += sum(output.num_cached_tokens or 0 for output in outputs)
        rounds.append({"ids": ids, "cached": cached})
    return {"version": vllm.__version__, "rounds": rounds}


if __name__ == "__main__":
    result = run(json.load(sys.stdin))
    print("\n" + json.dumps(result))
