# SPDX-License-Identifier: Apache-2.0
"""No denoising step waits for the device, whatever its requests ask for.

On a CPU, by what is called; ``tests/gpu/test_no_sync.py`` asks a GPU.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.sampling.features import CASES, request
from tests.sampling.no_sync import WouldWait, no_waiting
from tests.sampling.options import PROMPT, params
from tests.sampling.rig import Request, Rig, numbers_of
from vllm.v1.diffusion.modes import MULTI_BLOCK
from vllm.v1.diffusion.sampling import logits
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch


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
