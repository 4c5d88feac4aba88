# SPDX-License-Identifier: Apache-2.0
"""Runs every family in bfloat16, one engine after the other in this process; see ``test_bfloat16.py``."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch


def main() -> None:
    """Reads what to run, family by family, and writes each first step's log probabilities.

    Standard input is an object: for every family a ``folder`` and ``prompts``, ``max_tokens``, the ``config``
    of the diffusion and ``extra`` parameters. The first argument names the file that is written.
    """
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    found: dict[str, torch.Tensor] = {}
    for family, task in json.load(sys.stdin).items():
        llm = LLM(
            model=task["folder"],
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=4,
            max_logprobs=-1,
            diffusion_config=task["config"],
        )
        params = SamplingParams(
            temperature=0,
            max_tokens=task["max_tokens"],
            ignore_eos=True,
            logprobs=-1,
            flat_logprobs=True,
            detokenize=False,
            extra_args=task["extra"],
        )
        prompts: Any = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        found[family] = torch.stack([_by_id(o.outputs[0].logprobs) for o in outputs])
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()
        gc.freeze()  # An engine that ends has thawed what was imported, and the next one collects often.
    torch.save(found, sys.argv[1])


def _by_id(logprobs: Any) -> torch.Tensor:
    """Log probabilities ``[positions, vocab]``."""
    rows = []
    for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True):
        ids = torch.tensor(logprobs.token_ids[start:end])
        rows.append(
            torch.empty(int(ids.max()) + 1).scatter_(0, ids, torch.tensor(logprobs.logprobs[start:end]))
        )
    return torch.stack(rows)


if __name__ == "__main__":
    main()
