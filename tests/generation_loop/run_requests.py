# SPDX-License-Identifier: Apache-2.0
"""Runs calls of ``LLM.generate``, given as JSON on standard input; see ``elsewhere.py``."""

from __future__ import annotations

import json
import sys
from typing import Any


def run(llm: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One call; a refusal at admission is every request's result."""
    from vllm import SamplingParams

    params = [SamplingParams(**{"detokenize": False, "ignore_eos": True} | r["params"]) for r in requests]
    try:
        prompts = [{"prompt_token_ids": r["prompt"], "cache_salt": r.get("salt")} for r in requests]
        outputs = llm.generate(prompts, params, use_tqdm=False)
    except ValueError as error:
        return [{"refused": str(error)}] * len(requests)
    return [
        {
            "token_ids": list(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        for completion in (output.outputs[0] for output in outputs)
    ]


def main() -> None:
    """Reads a task, runs it, prints the results as the last line."""
    from vllm import LLM

    task = json.load(sys.stdin)
    llm = LLM(**task["settings"])
    results = [run(llm, requests) for requests in task["calls"]]
    llm.llm_engine.engine_core.shutdown()
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
