# SPDX-License-Identifier: Apache-2.0
"""One request for everything that a request may ask for."""

from __future__ import annotations

from typing import Any

from tests.sampling.options import FEATURES, OPTIONS, PROMPT, params
from tests.sampling.rig import Request, numbers_of
from vllm.v1.diffusion.policies.registry import built_in_policies

CASES: dict[str, dict[str, Any]] = {
    **{name: {"params": options} for name, options in OPTIONS.items()},
    **{name: {"more": more} for name, more in FEATURES.items()},
    **{f"policy {name}": {"algorithm": name} for name in built_in_policies()},
    "a policy's early stop": {"algorithm": "d3llm", "values": {"early_stop": 1.0}},
    "log probabilities": {"params": {"logprobs": 3}},
    "listed log probabilities": {"params": {"logprob_token_ids": [3, 5]}},
    "temperature": {"params": {"temperature": 0.8, "seed": 3}},
    "filters": {"params": {"temperature": 0.8, "seed": 3, "top_k": 5, "top_p": 0.9, "min_p": 0.01}},
    "trace": {"trace": True},
    "candidates": {"trace": True, "more": {"candidates": 3}},
    "open blocks": {"more": {"watched": True}},
    "a sample of targets": {"more": {"targets": (5, 6, 7, 8), "hidden": (0, 2)}, "params": {"logprobs": 0}},
}


def request(case: dict[str, Any], key: int) -> Request:
    """A request with that, and the numbers of its policy."""
    values = numbers_of(case.get("algorithm", "threshold")) | case.get("values", {})
    fields: dict[str, Any] = {"algorithm": "threshold", "threshold": 0.4, "trace": False} | case
    fields |= {"params": params(**case.get("params", {})), "values": values, "block_length": (8, 4)[key % 2]}
    return Request(prompt=PROMPT[: 3 + key % 3], key=key, **fields)
