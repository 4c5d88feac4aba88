# SPDX-License-Identifier: Apache-2.0
"""skinny_linear against float64: shapes, rows, dtypes, graphs, and kernels close behind one another."""

import pytest
import torch

from tests.kernels.linear_cases import Case, check, make_case
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES

cuda_only = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA GPU of compute capability 9.0",
)
DTYPES = [torch.bfloat16, torch.float16]


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(16, 64), (1040, 4096), (6144, 1088), (24576, 512)])
def test_cuda_matches_float64(dtype: torch.dtype, gated: bool, shape: tuple[int, int]) -> None:
    """Tiles that are shared by many blocks, by two, by none; a last tile and a last step cut short."""
    for tokens in (1, 7, 8, 16, 31, 33, 64):
        check(make_case(tokens, *shape, dtype=dtype, gated=gated, bias=tokens % 2 == 0))


@cuda_only
def test_cuda_takes_rows_of_a_wider_matrix() -> None:
    case = make_case(5, 512, 256)
    wide = torch.randn(5, 1024, device="cuda").to(torch.bfloat16)
    wide[:, 128:384] = case.input
    check(Case(wide[:, 128:384], case.weight, case.bias, case.gated))


@cuda_only
def test_cuda_gives_the_same_bits_again_and_leaves_zeros() -> None:
    case = make_case(32, 6144, 4096)
    first = case.run()
    for _ in range(50):
        assert torch.equal(case.run(), first)
    assert not case.arrived.any()


def check_norm(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    x, residual = (torch.randn(rows, columns, generator=generator).to(dtype).cuda() for _ in range(2))
    weight = torch.randn(columns, generator=generator).to(dtype).cuda()
    expected, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    linear_ops.add_rms_norm(x, residual, weight, 1e-6)
    tolerance = TOLERANCES["add_rms_norm"][str(dtype).removeprefix("torch.")]
    torch.testing.assert_close(x.double(), expected, rtol=tolerance.relative, atol=tolerance.absolute)
    assert torch.equal(residual, total.to(dtype))


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 264, 4096, 8192])
def test_cuda_norm_matches_float64(dtype: torch.dtype, columns: int) -> None:
    for rows in (1, 3, 32):
        check_norm(rows, columns, dtype)


@cuda_only
def test_cuda_norm_schema() -> None:
    x, residual = (torch.randn(3, 64, device="cuda").bfloat16() for _ in range(2))
    weight = torch.ones(64, device="cuda").bfloat16()
    torch.library.opcheck(
        torch.ops.vllm_diffusion.add_rms_norm.default, (x, residual, weight, 1e-6, None, None)
    )


@cuda_only
def test_cuda_norm_refuses_more_columns_than_a_block_has() -> None:
    x = torch.zeros(1, 8200, device="cuda").bfloat16()
    with pytest.raises(RuntimeError, match="at most 8192, not 8200"):
        linear_ops.add_rms_norm(x, x.clone(), x[0].clone(), 1e-6)


@cuda_only
def test_cuda_chain_sees_what_comes_before_it() -> None:
    """A kernel starts before the one whose output it takes has ended; replayed, and on another input."""
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randn(2048, 2048, generator=generator) / 45).bfloat16().cuda() for _ in range(6)]
    arrived = torch.zeros(32, dtype=torch.int32, device="cuda")
    scale = torch.ones(2048, dtype=torch.bfloat16, device="cuda")
    start = torch.zeros(8, 2048, dtype=torch.bfloat16, device="cuda")

    def chain() -> torch.Tensor:
        x = start
        residual = start.clone()
        for weight in weights:
            x = linear_ops.skinny_linear(x, weight, None, arrived)
            linear_ops.add_rms_norm(x, residual, scale, 1e-6)
        return x

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for seed in range(5):
        start.copy_(torch.randn(8, 2048, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        expected, residual = start, start
        for weight in weights:
            product = reference.skinny_linear(expected, weight, None).bfloat16()
            pair = reference.add_rms_norm(product, residual, scale, 1e-6)
            expected, residual = pair[0].bfloat16(), pair[1].bfloat16()
        error = (out.double() - expected.double()).norm() / expected.double().norm()
        assert error < 0.02, error


@cuda_only
def test_cuda_schema_and_fake() -> None:
    for gated in (False, True):
        case = make_case(8, 256, 128, gated=gated)
        torch.library.opcheck(torch.ops.vllm_diffusion.skinny_linear.default, case.arguments())


@cuda_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": (65, 128)}, "64 rows at most, not 65"),
        ({"input": (8, 192)}, "weight's columns, 128, not 192"),
        ({"weight": (256, 96), "input": (8, 96)}, "multiple of 64, not 96"),
        ({"weight": (252, 128)}, "multiple of 8, .* not 252"),
        ({"arrived": (3,)}, "arrived must have 4 entries, not 3"),
    ],
)
def test_cuda_refuses(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"input": (8, 128), "weight": (256, 128), "arrived": (4,)} | change
    tensors = {
        name: torch.zeros(shape, dtype=torch.int32 if name == "arrived" else torch.bfloat16, device="cuda")
        for name, shape in shapes.items()
    }
    with pytest.raises(RuntimeError, match=message):
        linear_ops.skinny_linear(tensors["input"], tensors["weight"], None, tensors["arrived"])


@pytest.mark.parametrize("gated", [False, True])
def test_fake_has_the_shape_of_the_reference(gated: bool) -> None:
    case = make_case(3, 64, 128, gated=gated, device="cpu")
    wanted = reference.skinny_linear(case.input, case.weight, case.bias, gated)
    meta = [None if x is None else x.to("meta") for x in (case.input, case.weight, case.bias, case.arrived)]
    fake = torch.ops.vllm_diffusion.skinny_linear(*meta, gated)
    assert fake.shape == wanted.shape
    assert fake.dtype == case.input.dtype
