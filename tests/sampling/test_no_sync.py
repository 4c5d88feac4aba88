# SPDX-License-Identifier: Apache-2.0
"""No denoising step waits for the device, whatever its requests ask for.

On a CPU, by what is called; ``tests/gpu/test_no_sync.py`` asks a GPU.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.sampling.no_sync import WouldWait, no_waiting
from tests.sampling.options import FEATURES, OPTIONS, PROMPT, params
from tests.sampling.rig import Request, Rig, numbers_of
from vllm.v1.diffusion.modes import MULTI_BLOCK
from vllm.v1.diffusion.policies.registry import built_in_policies
from vllm.v1.diffusion.sampling import logits
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

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
    "open blocks": {"more": {"watched": True}},
    "a sample of targets": {"more": {"targets": (5, 6, 7, 8), "hidden": (0, 2)}, "params": {"logprobs": 0}},
}


def request(case: dict[str, Any], key: int) -> Request:
    """A request with that, and the numbers of its policy."""
    values = numbers_of(case.get("algorithm", "threshold")) | case.get("values", {})
    fields: dict[str, Any] = {"algorithm": "threshold", "threshold": 0.4, "trace": False} | case
    fields |= {"params": params(**case.get("params", {})), "values": values, "block_length": (8, 4)[key % 2]}
    return Request(prompt=PROMPT[: 3 + key % 3], key=key, **fields)


def watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every further step of the sampler watched."""
    call = DenoisingSampler.__call__
    modules = [module for name, module in sys.modules.items() if name.startswith("vllm.")]

    def step(self: Any, *args: Any) -> Any:
        with no_waiting(monkeypatch, *modules):
            return call(self, *args)

    monkeypatch.setattr(DenoisingSampler, "__call__", step)
    # Upstream's function reads a number on a CPU, where that costs nothing.
    monkeypatch.setattr(logits, "apply_top_k_top_p", apply_top_k_top_p_pytorch)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("aligned", [True, False])
def test_alone_and_beside_another(case: str, aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(aligned)
    watched(rig, monkeypatch)
    rig.run([request(CASES[case], 0)], 9)
    rig.run([request(CASES[case], 1), request({}, 2), request(CASES[case], 3)], 9)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "processed_logits"])
def test_all_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(mode=mode, num_slots=len(CASES))
    watched(rig, monkeypatch)
    rig.run([request(case, i) for i, case in enumerate(CASES.values())], 9)


def test_several_open_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(kind=MULTI_BLOCK)
    watched(rig, monkeypatch)
    own = numbers_of("multi_block")
    ways: list[dict[str, Any]] = [{}, {"logprobs": 3}, {"temperature": 0.8, "seed": 3}]
    several = [
        Request(params(**more), PROMPT[: 3 + key], key, "multi_block", block_length=2, values=own)
        for key, more in enumerate(ways)
    ]
    rig.run([several[0]], 9)
    rig.run([*several, request({}, 1)], 9)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[:, [1, 2]],
        lambda x: x.__setitem__((slice(None), [1, 2]), 0.0),
        lambda x: x[x > 0],
        lambda x: x.max().item(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.nonzero(x),
        lambda x: x + torch.tensor([1.0]),
        lambda x: torch.repeat_interleave(x, x.new_ones(3, dtype=torch.int64), dim=0),
    ],
)
def test_the_watch_sees_what_waits(waits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3, 4)
    with pytest.raises(WouldWait), no_waiting(monkeypatch):
        waits(values)
