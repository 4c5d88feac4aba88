# SPDX-License-Identifier: Apache-2.0
"""Products, norms and rows of float8_e4m3fn against the reference: shapes, scales, graphs, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.eight_bit_cases import check_eight_bits, make_eight_bit_case, numbers, same_rows
from tests.kernels.linear_cases import counters
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops

cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
hopper_only = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA GPU of compute capability 9.0",
)
DTYPES = [torch.bfloat16, torch.float16]
CHECKS = ("test_autograd_registration", "test_faketensor")
"""The others compare arguments, which torch does not do for float8_e4m3fn."""


@hopper_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(16, 128), (1040, 4096), (6144, 1152), (24576, 512)])
def test_cuda_product_matches_float64(
    dtype: torch.dtype, gated: bool, per_channel: bool, shape: tuple[int, int]
) -> None:
    """Tiles that are shared by many blocks, by two, by none; a last tile and a last step cut short."""
    for tokens in (1, 7, 8, 16, 31, 33, 64):
        check_eight_bits(
            make_eight_bit_case(
                tokens,
                *shape,
                dtype=dtype,
                gated=gated,
                bias=tokens % 2 == 0,
                per_channel=per_channel,
                per_token=tokens != 31,
            )
        )


@hopper_only
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)])
def test_cuda_product_of_an_8b_model(shape: tuple[int, int]) -> None:
    for tokens in (1, 4, 32, 64):
        check_eight_bits(make_eight_bit_case(tokens, *shape, gated=shape[0] == 24576, per_channel=True))


@hopper_only
def test_cuda_product_gives_the_same_bits_again() -> None:
    case = make_eight_bit_case(32, 6144, 4096)
    first = case.run()
    for _ in range(50):
        assert torch.equal(case.run(), first)
    assert not counters(case.weight).any()


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 264, 4096, 12288, 32768])
def test_cuda_rows_are_the_references_bit_for_bit(dtype: torch.dtype, columns: int) -> None:
    for rows in (1, 3, 64, 300):
        x = numbers(rows, columns, dtype)
        same_rows(linear_ops.quantize_rows(x), reference.quantize_rows(x))
    wide = numbers(5, columns + 64, dtype)[:, 8 : columns + 8]
    same_rows(linear_ops.quantize_rows(wide), reference.quantize_rows(wide))


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 264, 12288])
def test_cuda_rows_with_the_activation(dtype: torch.dtype, columns: int) -> None:
    """Near the reference: the activation's exponential is another one, and its rounding at times."""
    for rows in (1, 3, 300):
        x = torch.randn(rows, 2 * columns, generator=torch.Generator().manual_seed(rows)).to(dtype).cuda()
        data, scale = linear_ops.quantize_rows(x, gated=True)
        expected, expected_scale = reference.quantize_rows(x, gated=True)
        assert data.shape == expected.shape
        torch.testing.assert_close(scale, expected_scale, rtol=1e-2, atol=0)
        # A number may fall to the other side of two that it lies between.
        got, wanted = data.float() * scale, expected.float() * expected_scale
        torch.testing.assert_close(got, wanted, rtol=0.14, atol=float(expected_scale.max()) / 256)
        assert (got - wanted).norm() < 2e-2 * wanted.norm()


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 264, 4096, 8192])
def test_cuda_norm_leaves_its_rows_in_eight_bits(dtype: torch.dtype, columns: int) -> None:
    for rows in (1, 3, 300):
        x, residual = numbers(rows, columns, dtype), numbers(rows, columns, dtype) * 0.5
        weight = numbers(1, columns, dtype)[0]
        plain, total = x.clone(), residual.clone()
        assert linear_ops.add_rms_norm(plain, total, weight, 1e-6) is None
        quantised = linear_ops.add_rms_norm(x, residual, weight, 1e-6, quantize=True)
        assert quantised is not None
        assert torch.equal(x, plain) and torch.equal(residual, total)
        same_rows(quantised, reference.quantize_rows(plain))


@hopper_only
def test_cuda_chain_sees_what_comes_before_it() -> None:
    """Each kernel starts before the one whose output it takes has ended; replayed, on another input."""
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randn(2048, 2048, generator=generator) / 45).cuda() for _ in range(6)]
    scales = [weight.abs().amax(-1, keepdim=True) / 448 for weight in weights]
    eight = [reference.to_e4m3(w, s) for w, s in zip(weights, scales, strict=True)]
    arrived = torch.zeros(32, dtype=torch.int32, device="cuda")
    ones = torch.ones(2048, dtype=torch.bfloat16, device="cuda")
    start = torch.zeros(8, 2048, dtype=torch.bfloat16, device="cuda")

    def chain(reference_too: bool = False) -> torch.Tensor:
        x, residual = start.clone(), start.clone()
        rows = linear_ops.quantize_rows(x)
        for weight, scale in zip(eight, scales, strict=True):
            if reference_too:
                torch.cuda.synchronize()
            x = linear_ops.skinny_linear_fp8(*rows, weight, scale, None, arrived, torch.bfloat16)
            if reference_too:
                torch.cuda.synchronize()
            left = linear_ops.add_rms_norm(x, residual, ones, 1e-6, quantize=True)
            assert left is not None
            rows = left
        return x

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for seed in range(5):
        start.copy_(torch.randn(8, 2048, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        got = out.clone()
        # The same kernels, each after the one before it has ended.
        assert torch.equal(got, chain(reference_too=True))


@cuda_only
def test_cuda_schema_and_fakes() -> None:
    ops = torch.ops.vllm_diffusion
    x = torch.randn(3, 64, device="cuda").bfloat16()
    out, scale = reference.quantize_rows(x)
    scale = scale.view(-1)
    torch.library.opcheck(ops.quantize_rows.default, (x, False, out, scale), test_utils=CHECKS)
    weight = torch.ones(64, device="cuda").bfloat16()
    arguments = (x, x.clone(), weight, 1e-6, out, scale)
    torch.library.opcheck(ops.add_rms_norm.default, arguments, test_utils=CHECKS)


@hopper_only
def test_cuda_product_schema_and_fake() -> None:
    case = make_eight_bit_case(4, 64, 128)
    out = torch.empty(4, 64, dtype=torch.bfloat16, device="cuda")
    arguments = (*case[:5], counters(case.weight), False, out)
    torch.library.opcheck(torch.ops.vllm_diffusion.skinny_linear_fp8.default, arguments, test_utils=CHECKS)


@hopper_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": (65, 128)}, "64 rows at most, not 65"),
        ({"weight": (256, 192), "input": (8, 192)}, "multiple of 128, not 192"),
        ({"input_scale": (7,)}, "input_scale must be contiguous and have 1 or 8 entries, not 7"),
        ({"weight_scale": (128,)}, "weight_scale must be contiguous and have 1 or 256 entries, not 128"),
    ],
)
def test_cuda_product_refuses(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"input": (8, 128), "weight": (256, 128), "input_scale": (8,), "weight_scale": (256,)} | change
    given: dict[str, Any] = {
        name: torch.zeros(shape, device="cuda").to(torch.float32 if "scale" in name else torch.float8_e4m3fn)
        for name, shape in shapes.items()
    }
    arrived = torch.zeros(4, dtype=torch.int32, device="cuda")
    with pytest.raises(RuntimeError, match=message):
        linear_ops.skinny_linear_fp8(**given, bias=None, arrived=arrived, dtype=torch.bfloat16)


@hopper_only
def test_cuda_product_refuses_other_dtypes() -> None:
    case = make_eight_bit_case(4, 64, 128)
    arrived = counters(case.weight)
    with pytest.raises(RuntimeError, match="input must be float8_e4m3fn"):
        linear_ops.skinny_linear_fp8(
            case.input.bfloat16(), case.input_scale, case.weight.bfloat16(), case.weight_scale, None,
            arrived, torch.bfloat16,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="out must be bfloat16 or float16"):
        linear_ops.skinny_linear_fp8(*case[:5], arrived, torch.float32)


@cuda_only
def test_cuda_rows_refuse() -> None:
    with pytest.raises(RuntimeError, match="multiple of 8 and at most 32768, not 12"):
        linear_ops.quantize_rows(torch.zeros(2, 12, device="cuda").bfloat16())
    with pytest.raises(RuntimeError, match="multiple of 16 and at most 65536, not 24"):
        linear_ops.quantize_rows(torch.zeros(2, 24, device="cuda").bfloat16(), gated=True)
    with pytest.raises(RuntimeError, match="at most 32768, not 32776"):
        linear_ops.quantize_rows(torch.zeros(2, 32776, device="cuda").bfloat16())


@pytest.mark.parametrize("gated", [False, True])
def test_shapes_of_the_fakes(gated: bool) -> None:
    case = make_eight_bit_case(3, 64, 128, gated=gated, bias=True, device="cpu")
    meta: Any = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in case[:5]]
    arrived = torch.zeros(1, dtype=torch.int32, device="meta")
    x, row_scale, weight, weight_scale, bias = meta
    got = linear_ops.skinny_linear_fp8(
        x, row_scale, weight, weight_scale, bias, arrived, torch.bfloat16, gated
    )
    assert got.shape == reference.skinny_linear_fp8(*case).shape and got.dtype == torch.bfloat16
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    data, scale = linear_ops.quantize_rows(x.to("meta"), gated)
    expected, expected_scale = reference.quantize_rows(x, gated)
    assert (data.shape, data.dtype) == (expected.shape, expected.dtype)
    assert (scale.shape, scale.dtype) == (expected_scale.shape, expected_scale.dtype)


def test_the_reference_rounds_a_row_to_its_largest_number() -> None:
    """Half of the step between two numbers of 3 bits; zeros stay zeros, large ones are kept."""
    x = numbers(6, 256, torch.float32, "cpu")
    data, scale = reference.quantize_rows(x)
    got = data.float() * scale
    torch.testing.assert_close(got.abs().amax(-1), x.abs().amax(-1), rtol=1e-6, atol=0)
    assert ((got - x).abs() <= x.abs() / 16 + scale * 2**-10).all()
    assert scale[1] == pytest.approx(1 / (448 * 512)) and not got[1].any()
