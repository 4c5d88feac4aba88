# SPDX-License-Identifier: Apache-2.0
"""skinny_linear against float64: shapes, rows, dtypes, graphs, and kernels close behind one another."""

import pytest
import torch

from tests.kernels.linear_cases import Case, check, make_case
from vllm.v1.diffusion import linear_ops, reference

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


@cuda_only
def test_cuda_chain_sees_what_comes_before_it() -> None:
    """A kernel starts before the one whose output it takes has ended; replayed, and on another input."""
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randn(2048, 2048, generator=generator) / 45).bfloat16().cuda() for _ in range(6)]
    arrived = torch.zeros(32, dtype=torch.int32, device="cuda")
    start = torch.zeros(8, 2048, dtype=torch.bfloat16, device="cuda")

    def chain() -> torch.Tensor:
        x = start
        for weight in weights:
            x = linear_ops.skinny_linear(x, weight, None, arrived)
        return x

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for seed in range(5):
        start.copy_(torch.randn(8, 2048, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        expected = start
        for weight in weights:
            expected = reference.skinny_linear(expected, weight, None).bfloat16()
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
        ({"weight": (252, 128)}, "multiple of 8, not 252"),
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
