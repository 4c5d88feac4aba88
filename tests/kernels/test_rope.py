# SPDX-License-Identifier: Apache-2.0
"""qk_norm_rope_cache against float64: heads, rows without a slot, graphs, wrong arguments."""

from typing import Any

import pytest
import torch

from tests.kernels.rope_cases import (
    EPSILON,
    POSITIONS,
    check_eight_bit_cache,
    check_rope,
    eight_bit_cache,
    make_rope_case,
)
from vllm.v1.diffusion.kernels import qk_norm_rope_cache as rope_ops
from vllm.v1.diffusion.kernels import reference

cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
hopper_only = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA GPU of compute capability 9.0",
)


@cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("head", [4, 20, 64, 80, 128, 256])
def test_cuda_matches_float64(dtype: torch.dtype, norm: bool, head: int) -> None:
    for rows, heads, kv_heads in ((1, 1, 1), (4, 32, 8), (33, 7, 1), (60, 5, 5)):
        check_rope(rows, heads, kv_heads, head, dtype, norm=norm)


@cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("head", "rotary"), [(8, 4), (20, 12), (64, 32), (128, 64), (128, 96), (256, 4)])
def test_cuda_rotates_a_part_of_a_head(dtype: torch.dtype, norm: bool, head: int, rotary: int) -> None:
    for rows, heads, kv_heads in ((1, 1, 1), (4, 16, 4), (33, 7, 1)):
        check_rope(rows, heads, kv_heads, head, dtype, norm=norm, rotary=rotary)


@cuda_only
def test_cuda_leaves_what_is_not_rotated_as_it_is() -> None:
    """Bit for bit where there is no norm, also beside infinities."""
    case = make_rope_case(5, 3, 2, 64, torch.bfloat16, norm=False, rotary=32)
    rest = case.qkv.view(5, -1, 64)[..., 32:]
    rest[0] = torch.inf
    before = rest.clone()
    rope_ops.qk_norm_rope_cache(*case)
    assert torch.equal(rest, before)


def test_reference_of_a_part_of_a_head() -> None:
    """Upstream's own rotation of a part, in float32."""
    from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

    case = make_rope_case(9, 3, 2, 64, torch.float32, norm=False, rotary=32, device="cpu")
    queries = case.qkv.view(9, -1, 64)[:, :3]
    expected = queries.clone()
    cosine, sine = case.cos_sin[case.positions].chunk(2, dim=-1)
    expected[..., :32] = ApplyRotaryEmb.forward_static(queries[..., :32], cosine, sine)
    got = reference.qk_norm_rope(queries, None, EPSILON, case.cos_sin, case.positions)
    torch.testing.assert_close(got, expected.double(), rtol=1e-5, atol=1e-5)


@cuda_only
def test_cuda_stores_nothing_where_there_is_no_cache() -> None:
    case = make_rope_case(6, 4, 2, 64, torch.bfloat16)
    stored = case._replace(qkv=case.qkv.clone())
    rope_ops.qk_norm_rope_cache(*stored)
    rope_ops.qk_norm_rope_cache(*case[:8])
    assert torch.equal(case.qkv, stored.qkv)


@cuda_only
def test_cuda_leaves_rows_of_unknown_positions_and_slots_beyond_the_cache() -> None:
    case = make_rope_case(4, 4, 2, 64, torch.bfloat16)
    assert case.key_cache is not None and case.slots is not None
    case.positions[:] = torch.tensor([-1, POSITIONS, 3, 4])
    case.slots[:] = torch.tensor([0, 1, 1 << 40])
    before, keys = case.qkv.clone(), case.key_cache.clone()
    rope_ops.qk_norm_rope_cache(*case)
    assert torch.equal(case.qkv[:2], before[:2])
    assert not torch.equal(case.qkv[2:], before[2:])
    assert torch.equal(case.key_cache, keys)


@cuda_only
def test_cuda_schema_and_fake() -> None:
    case = make_rope_case(5, 4, 2, 64, torch.float16)
    torch.library.opcheck(torch.ops.vllm_diffusion.qk_norm_rope_cache.default, (*case, *[None] * 4))


@cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("head", "rotary"), [(4, 4), (20, 12), (64, 64), (128, 128), (128, 64), (256, 256)])
def test_cuda_stores_eight_bits(dtype: torch.dtype, kept: torch.dtype, head: int, rotary: int) -> None:
    """What is stored is what the 16-bit kernel gives, divided by the scale and rounded: bit for bit."""
    for rows, heads, kv_heads in ((1, 1, 1), (4, 32, 8), (33, 7, 1), (60, 5, 5)):
        check_eight_bit_cache(rows, heads, kv_heads, head, dtype, kept, rotary)


@cuda_only
def test_cuda_schema_and_fake_of_eight_bits() -> None:
    case = eight_bit_cache(make_rope_case(5, 4, 2, 64, torch.float16), torch.uint8)
    scale = torch.tensor(0.5, device="cuda")
    queries = torch.empty(5, 4, 64, dtype=torch.float8_e4m3fn, device="cuda")
    arguments = (*case, scale, scale, queries, scale)
    # The other checks compare arguments, which torch does not do for float8_e4m3fn.
    checks = ("test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.vllm_diffusion.qk_norm_rope_cache.default, arguments, test_utils=checks)


@cuda_only
@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"key_scale": 1}, "key_scale and value_scale come together"),
        ({"key_scale": 1, "value_scale": 2}, "value_scale must be one float32"),
        ({"query_scale": 1}, "queries and query_scale come together, with key_scale"),
        ({"key_scale": 1, "value_scale": 1}, "key_cache must be float8_e4m3fn or uint8"),
    ],
)
def test_cuda_refuses_scales(scales: dict[str, int], message: str) -> None:
    case = make_rope_case(4, 4, 2, 64, torch.bfloat16)
    given: Any = {name: torch.ones(count, device="cuda") for name, count in scales.items()}
    with pytest.raises(RuntimeError, match=message):
        rope_ops.qk_norm_rope_cache(*case, **given)


@hopper_only
def test_cuda_sees_the_product_before_it() -> None:
    """It starts before the product has ended, in a graph that is replayed on other inputs."""
    from vllm.v1.diffusion.kernels import skinny_linear as linear_ops

    case = make_rope_case(8, 8, 4, 128, torch.bfloat16)
    columns = case.qkv.shape[1]
    weight = (torch.randn(columns, 2048, generator=torch.Generator().manual_seed(1)) / 45).bfloat16().cuda()
    arrived = torch.zeros(columns // 64, dtype=torch.int32, device="cuda")
    start = torch.zeros(8, 2048, dtype=torch.bfloat16, device="cuda")

    def both() -> torch.Tensor:
        qkv = linear_ops.skinny_linear(start, weight, None, arrived)
        rope_ops.qk_norm_rope_cache(qkv, *case[1:])
        return qkv

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    for seed in range(5):
        start.copy_(torch.randn(8, 2048, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        product = linear_ops.skinny_linear(start, weight, None, arrived).view(8, -1, 128)
        expected = reference.qk_norm_rope(
            product[:, :8], case.q_weight, EPSILON, case.cos_sin, case.positions
        )
        torch.testing.assert_close(out.view(8, -1, 128)[:, :8].double(), expected, rtol=8e-3, atol=8e-3)


@cuda_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, r"qkv must be \[rows, 9 heads\]"),
        ({"heads": 12}, "cos_sin's columns must be a multiple of 4 and at most a head's 32, not 64"),
        ({"heads": 12, "cos_sin": "half"}, "q_weight must have 32 entries"),
        ({"k_weight": None}, "q_weight and k_weight come together"),
        ({"slots": None}, "key_cache, value_cache and slots come together"),
        ({"slots": "long"}, "slots must have 4 entries at most, not 5"),
        ({"positions": "short"}, "positions must have 4 entries"),
        ({"cos_sin": "odd"}, "multiple of 4 and at most a head's 64, not 62"),
        ({"cos_sin": "wide"}, "multiple of 4 and at most a head's 64, not 68"),
        ({"value_cache": "fewer"}, "value_cache must have key_cache's pages"),
        ({"qkv": "float"}, "qkv must be bfloat16 or float16"),
    ],
)
def test_cuda_refuses(change: dict[str, Any], message: str) -> None:
    case = make_rope_case(4, 4, 2, 64, torch.bfloat16)
    assert case.value_cache is not None
    wrong = {
        "long": torch.zeros(5, dtype=torch.int64, device="cuda"),
        "short": case.positions[:3],
        "odd": case.cos_sin[:, :62].contiguous(),
        "half": case.cos_sin[:, :32].contiguous(),
        "wide": torch.zeros(POSITIONS, 68, dtype=torch.bfloat16, device="cuda"),
        "fewer": case.value_cache[:2],
        "float": case.qkv.float(),
    }
    case = case._replace(**{name: wrong.get(value, value) for name, value in change.items()})
    with pytest.raises(RuntimeError, match=message):
        rope_ops.qk_norm_rope_cache(*case)


def test_fake_takes_a_call_without_a_cache() -> None:
    case = make_rope_case(3, 2, 1, 64, torch.bfloat16, device="cpu")
    meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in case[:8]]
    torch.ops.vllm_diffusion.qk_norm_rope_cache(*meta, *[None] * 7)
