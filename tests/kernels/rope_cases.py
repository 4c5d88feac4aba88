# SPDX-License-Identifier: Apache-2.0
"""Inputs for the tests of qk_norm_rope_cache, and the comparison with the reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import qk_norm_rope_cache as rope_ops
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES

EPSILON = 1e-6
PAGE = 16
PAGES = 4
POSITIONS = 1000


class RopeCase(NamedTuple):
    """A call's arguments; the last three may be None."""

    qkv: Tensor
    heads: int
    kv_heads: int
    q_weight: Tensor | None
    k_weight: Tensor | None
    epsilon: float
    cos_sin: Tensor
    positions: Tensor
    key_cache: Tensor | None
    value_cache: Tensor | None
    slots: Tensor | None


def rope_table(positions: int, head: int, dtype: torch.dtype) -> Tensor:
    """Cosines, then sines, as upstream keeps them: ``[positions, head]``."""
    frequencies = 10000.0 ** (-torch.arange(0, head, 2) / head)
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)


def make_rope_case(
    rows: int,
    heads: int,
    kv_heads: int,
    head: int,
    dtype: torch.dtype,
    *,
    norm: bool = True,
    rotary: int | None = None,
    device: str = "cuda",
) -> RopeCase:
    """Rows with slots but for the second one, and the last one, for which there is none."""
    generator = torch.Generator().manual_seed(rows + heads + head)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    # Keys and values side by side, as in upstream's cache.
    cache = draw(PAGES, kv_heads, PAGE, 2 * head).transpose(1, 2)
    keys, values = torch.split(cache, head, dim=-1)
    slots = torch.randperm(PAGE * PAGES, generator=generator)[: rows - 1]
    slots[1:2] = -1
    return RopeCase(
        draw(rows, (heads + 2 * kv_heads) * head),
        heads,
        kv_heads,
        draw(head) if norm else None,
        draw(head) if norm else None,
        EPSILON,
        rope_table(POSITIONS, rotary or head, dtype).to(device),
        torch.randint(POSITIONS, (rows,), generator=generator).to(device),
        keys,
        values,
        slots.to(device),
    )


def check_rope(
    rows: int,
    heads: int,
    kv_heads: int,
    head: int,
    dtype: torch.dtype,
    *,
    norm: bool = True,
    rotary: int | None = None,
) -> None:
    """Runs a case on the GPU; queries, keys and cache are near the reference, the rest is untouched."""
    case = make_rope_case(rows, heads, kv_heads, head, dtype, norm=norm, rotary=rotary)
    assert case.key_cache is not None and case.value_cache is not None and case.slots is not None
    q, k, v = torch.split(case.qkv.clone().view(rows, -1, head), [heads, kv_heads, kv_heads], dim=1)
    keys, values = case.key_cache.clone(), case.value_cache.clone()
    expected_q = reference.qk_norm_rope(q, case.q_weight, EPSILON, case.cos_sin, case.positions)
    expected_k = reference.qk_norm_rope(k, case.k_weight, EPSILON, case.cos_sin, case.positions)
    rope_ops.qk_norm_rope_cache(*case)
    tolerance = TOLERANCES["qk_norm_rope_cache"][str(dtype).removeprefix("torch.")]
    got_q, got_k, got_v = torch.split(case.qkv.view(rows, -1, head), [heads, kv_heads, kv_heads], dim=1)
    for got, expected in ((got_q, expected_q), (got_k, expected_k)):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance.relative, atol=tolerance.absolute)
    assert torch.equal(got_v, v)
    for row, slot in enumerate(case.slots.tolist()):
        if slot >= 0:
            keys[slot // PAGE, slot % PAGE] = got_k[row]
            values[slot // PAGE, slot % PAGE] = v[row]
    assert torch.equal(case.key_cache, keys)
    assert torch.equal(case.value_cache, values)


def eight_bit_cache(case: RopeCase, kept: torch.dtype) -> RopeCase:
    """The case with a cache of 8 bits, as upstream lays it out."""
    assert case.key_cache is not None
    head = case.key_cache.shape[3]
    cache = torch.zeros(PAGES, case.kv_heads, PAGE, 2 * head, dtype=torch.uint8, device=case.qkv.device)
    keys, values = torch.split(cache.view(kept).transpose(1, 2), head, dim=-1)
    return case._replace(key_cache=keys, value_cache=values)


def check_eight_bit_cache(
    rows: int, heads: int, kv_heads: int, head: int, dtype: torch.dtype, kept: torch.dtype, rotary: int
) -> None:
    """Runs a case with a cache of 16 and one of 8 bits; the numbers of the second follow from the first's."""
    wide = make_rope_case(rows, heads, kv_heads, head, dtype, rotary=rotary)
    narrow = eight_bit_cache(wide._replace(qkv=wide.qkv.clone()), kept)
    assert narrow.key_cache is not None and narrow.value_cache is not None and narrow.slots is not None
    # Of one head's numbers, the largest are too large for their scale.
    scales = [torch.tensor(scale, device=wide.qkv.device) for scale in (0.02, 0.003, 0.01)]
    of_keys, of_values, of_queries = scales
    queries = rope_ops.qk_norm_rope_cache(
        *narrow, key_scale=of_keys, value_scale=of_values, query_scale=of_queries
    )
    assert rope_ops.qk_norm_rope_cache(*wide) is None
    assert torch.equal(narrow.qkv, wide.qkv)
    q, k, v = torch.split(wide.qkv.view(rows, -1, head), [heads, kv_heads, kv_heads], dim=1)
    assert queries is not None and same_bits(queries, reference.to_e4m3(q, scales[2]))
    keys, values = (torch.zeros(PAGES, PAGE, kv_heads, head).to(torch.float8_e4m3fn) for _ in range(2))
    for row, slot in enumerate(narrow.slots.tolist()):
        if slot >= 0:
            for cache, x, scale in ((keys, k, scales[0]), (values, v, scales[1])):
                cache[slot // PAGE, slot % PAGE] = reference.to_e4m3(x[row], scale).cpu()
    assert same_bits(narrow.key_cache.cpu(), keys)
    assert same_bits(narrow.value_cache.cpu(), values)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
