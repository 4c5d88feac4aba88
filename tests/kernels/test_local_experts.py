# SPDX-License-Identifier: Apache-2.0
"""Experts spread over ranks of a CPU: what the ranks make adds up to the whole."""

from __future__ import annotations

import pytest
import torch

from vllm import _custom_ops as ops
from vllm.v1.diffusion.layers.local_experts import local

TOKENS, EXPERTS, TOP, HIDDEN, INNER = 7, 8, 3, 64, 64


def fused(
    w13: torch.Tensor, w2: torch.Tensor, x: torch.Tensor, routed: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Upstream's operator, with the experts that it is given."""
    weights, ids = routed
    one, other = (ops.cpu_prepack_moe_weight(weight, "vec") for weight in (w13, w2))
    out = torch.empty_like(x)
    ops.cpu_fused_moe(out, x, one, other, None, None, weights, ids, "silu", "vec", False)
    return out


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_add_up_to_the_whole(ranks: int) -> None:
    draw = torch.Generator().manual_seed(0)
    w13 = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=draw) / 8
    w2 = torch.randn(EXPERTS, HIDDEN, INNER, generator=draw) / 8
    x = torch.randn(TOKENS, HIDDEN, generator=draw)
    scores = torch.rand(TOKENS, EXPERTS, generator=draw)
    weights, ids = scores.topk(TOP, dim=1)
    ids = ids.to(torch.int32)
    whole = fused(w13, w2, x, (weights, ids))
    total = torch.zeros_like(x)
    each = EXPERTS // ranks
    for rank in range(ranks):
        expert_map = torch.full((EXPERTS,), -1, dtype=torch.int32)
        mine = slice(rank * each, (rank + 1) * each)
        expert_map[mine] = torch.arange(each, dtype=torch.int32)
        total += fused(w13[mine].contiguous(), w2[mine].contiguous(), x, local(weights, ids, expert_map))
    torch.testing.assert_close(total, whole, atol=1e-5, rtol=1e-5)
    assert whole.abs().max() > 0.1
