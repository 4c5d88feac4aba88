# SPDX-License-Identifier: Apache-2.0
"""The kernels of 8 bits beside upstream's operators, which they replace."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.eight_bit_cases import make_eight_bit_case, numbers, same_rows
from tests.kernels.linear_cases import counters
from tests.kernels.rope_cases import PAGE, PAGES, eight_bit_cache, make_rope_case, same_bits
from vllm import _custom_ops as ops
from vllm.v1.diffusion.kernels import qk_norm_rope_cache as rope_ops
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops

hopper_only = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA GPU of compute capability 9.0",
)


@pytest.mark.parametrize("columns", [4096, 12288])
def test_rows_are_upstreams_bit_for_bit(columns: int) -> None:
    x = numbers(70, columns, torch.bfloat16)
    expected = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
    same_rows(linear_ops.quantize_rows(x), expected)


@hopper_only
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 12288)])
def test_a_product_is_upstreams(shape: tuple[int, int], per_channel: bool) -> None:
    """But for the order of additions; ours is no further from float64 than upstream's."""
    case = make_eight_bit_case(32, *shape, bias=True, per_channel=per_channel)
    upstream = ops.cutlass_scaled_mm(
        case.input,
        case.weight.t(),
        scale_a=case.input_scale,
        scale_b=case.weight_scale,
        out_dtype=torch.bfloat16,
        bias=case.bias,
    )
    expected = reference.skinny_linear_fp8(*case)

    def error(out: torch.Tensor) -> float:
        return float((out.double() - expected).norm() / expected.norm())

    assert error(case.run()) < 1.1 * error(upstream) + 1e-4, (error(case.run()), error(upstream))
    assert not counters(case.weight).any()


def test_a_cache_is_upstreams_bit_for_bit() -> None:
    """Values, and keys as the kernel leaves them beside the cache."""
    case = make_rope_case(33, 8, 2, 128, torch.bfloat16)
    case = eight_bit_cache(case, torch.uint8)
    k_scale, v_scale, q_scale = (torch.tensor(s, device="cuda") for s in (0.02, 0.003, 0.01))
    queries = rope_ops.qk_norm_rope_cache(*case, key_scale=k_scale, value_scale=v_scale, query_scale=q_scale)
    q, k, v = torch.split(case.qkv.view(33, -1, 128), [8, 2, 2], dim=1)
    pages = torch.zeros(PAGES, 2, PAGE, 256, dtype=torch.uint8, device="cuda")
    keys, values = torch.split(pages.transpose(1, 2), 128, dim=-1)
    assert case.slots is not None
    ops.reshape_and_cache_flash(k, v, keys, values, case.slots, "fp8", k_scale, v_scale)
    assert case.key_cache is not None and case.value_cache is not None
    assert same_bits(case.key_cache, keys) and same_bits(case.value_cache, values)
    quantised, _ = ops.scaled_fp8_quant(q.flatten(1).contiguous(), q_scale)
    assert queries is not None
    got, wanted = queries.flatten(1).float(), quantised.float()
    # Upstream multiplies queries with the scale's inverse: a number between two may fall to the other.
    assert (got != wanted).float().mean() < 1e-2
    torch.testing.assert_close(got, wanted, rtol=0.13, atol=2**-9)
