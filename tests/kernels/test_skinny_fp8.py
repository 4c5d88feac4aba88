# SPDX-License-Identifier: Apache-2.0
"""Which of upstream's 8-bit layers take our kernels, and what they give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.kernels.real_models import one_process
from tests.kernels.upstream_layers import INNER, WIDTH, linear, make
from vllm import _custom_ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsW8A8Fp8
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.layers.quantization.online.fp8 import (
    Fp8PerBlockOnlineLinearMethod,
    Fp8PerTensorOnlineLinearMethod,
    Fp8PtpcOnlineLinearMethod,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    QuantKey,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.qwen2 import Qwen2MLP
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import skinny_fp8, skinny_layers
from vllm.v1.diffusion.layers.apply import apply_kernels, use_eight_bit_head, use_skinny_layers
from vllm.v1.diffusion.layers.skinny_fp8 import EightBitHead, SkinnyScaledMM, product_of
from vllm.v1.diffusion.layers.skinny_layers import SkinnyNetwork, SkinnyNorm

BFLOAT16 = torch.bfloat16
COMPRESSED = CompressedTensorsConfig(target_scheme_map={}, ignore=[], quant_format="dense", config={})


@pytest.fixture(scope="module", autouse=True)
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_process(tmp_path_factory.mktemp("groups")), set_current_vllm_config(VllmConfig()):
        yield


class Calls(list[tuple[str, int]]):
    """Each kernel that ran, and its rows."""


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The kernels' references in their places, ours and upstream's."""
    torch.manual_seed(5)
    seen = Calls()

    def product(
        x: Any, x_scale: Any, weight: Any, weight_scale: Any, bias: Any, arrived: Any, dtype: Any,
        gated: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert len(arrived) * 64 >= len(weight) and weight.is_contiguous()
        seen.append(("gated" if gated else "skinny", len(x)))
        return reference.skinny_linear_fp8(x, x_scale, weight, weight_scale, bias, dtype, gated).to(dtype)

    def rows(x: Any, gated: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(("activation" if gated else "rows", len(x)))
        return reference.quantize_rows(x, gated)

    def norm(x: Any, residual: Any, weight: Any, epsilon: float, quantize: bool = False) -> Any:
        seen.append(("norm", len(x)))
        normed, total = reference.add_rms_norm(x, residual, weight, epsilon)
        x.copy_(normed)
        residual.copy_(total)
        return reference.quantize_rows(x) if quantize else None

    def upstream(a: Any, b: Any, scale_a: Any, scale_b: Any, out_dtype: Any, bias: Any) -> torch.Tensor:
        seen.append(("upstream", len(a)))
        return reference.skinny_linear_fp8(a, scale_a, b.t(), scale_b, bias, out_dtype).to(out_dtype)

    monkeypatch.setattr(skinny_fp8, "skinny_linear_fp8", product)
    monkeypatch.setattr(skinny_fp8, "quantize_rows", rows)
    monkeypatch.setattr(skinny_layers, "quantize_rows", rows)
    monkeypatch.setattr(skinny_layers, "add_rms_norm", norm)
    monkeypatch.setattr(_custom_ops, "cutlass_scaled_mm", upstream)
    monkeypatch.setattr(skinny_layers, "_LEAST", 1)
    return seen


class Quantises:
    """In the place of upstream's ``QuantFP8``, whose kernel a CPU has not."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def __call__(self, x: torch.Tensor, scale: Any, bound: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert bound is None
        self.calls.append(("upstream rows", len(x)))
        if scale is None:
            return reference.quantize_rows(x)
        return reference.to_e4m3(x, scale), scale


def eight_bits(
    layer: Any, calls: Calls, kind: type = Fp8LinearMethod, *, channels: bool = False, static: bool = False
) -> Any:
    """The layer as upstream leaves it on a GPU after loading, its method of this kind."""
    weight = layer.weight.data
    scale = weight.float().abs().amax(-1, keepdim=True) / 448
    scale = scale if channels else scale.amax()
    layer.weight = nn.Parameter(reference.to_e4m3(weight, scale).t(), requires_grad=False)
    layer.weight_scale = nn.Parameter(scale, requires_grad=False)
    layer.input_scale = torch.tensor(0.03) if static else None
    weights: QuantKey = kFp8StaticChannelSym if channels else kFp8StaticTensorSym
    rows: QuantKey = kFp8StaticTensorSym if static else kFp8DynamicTokenSym
    product: Any = CutlassFP8ScaledMMLinearKernel.__new__(CutlassFP8ScaledMMLinearKernel)
    product.config = FP8ScaledMMLinearLayerConfig(weights, rows, weight.shape, BFLOAT16, BFLOAT16)
    product.layer_param_names = ["weight", "weight_scale", "input_scale", "input_scale_ub"]
    product.logical_output_size = len(weight)
    product.fp8_dtype = torch.float8_e4m3fn
    product.quant_fp8 = Quantises(calls)
    owner: Any
    if kind is CompressedTensorsLinearMethod:
        owner = layer.scheme = CompressedTensorsW8A8Fp8.__new__(CompressedTensorsW8A8Fp8)
        layer.quant_method = CompressedTensorsLinearMethod(COMPRESSED)
    else:
        owner = layer.quant_method = object.__new__(kind)
    owner.fp8_linear = product
    return layer


def near(got: torch.Tensor, expected: torch.Tensor, products: int = 1) -> None:
    """But for the rounding to 8 bits: a product adds some 4 % of its own."""
    assert got.shape == expected.shape
    assert (got.double() - expected.double()).norm() < 0.05 * products * expected.double().norm()


@pytest.mark.parametrize(
    ("kind", "channels"),
    [
        (Fp8LinearMethod, False),
        (Fp8PerTensorOnlineLinearMethod, False),
        (Fp8PtpcOnlineLinearMethod, True),
        (CompressedTensorsLinearMethod, False),
        (CompressedTensorsLinearMethod, True),
    ],
)
def test_every_kind_of_layer(kind: type, channels: bool, calls: Calls) -> None:
    """Few rows go to the kernel, many to upstream's product, quantised by ours."""
    plain = linear()
    expected = {rows: torch.randn(rows, WIDTH, dtype=BFLOAT16) for rows in (1, 64, 65)}
    wanted = {rows: plain(x)[0] for rows, x in expected.items()}
    layer = eight_bits(plain, calls, kind, channels=channels)
    (taken, _, _) = use_skinny_layers(nn.Sequential(layer))
    assert str(taken) == "skinny_linear: 1 of 1 layers"
    assert type(layer.quant_method) is kind
    assert type(product_of(layer)).__name__ == "SkinnyCutlassFP8ScaledMMLinearKernel"
    for rows, x in expected.items():
        near(layer(x)[0], wanted[rows])
    assert calls == [("rows", 1), ("skinny", 1), ("rows", 64), ("skinny", 64), ("rows", 65), ("upstream", 65)]


def test_what_upstream_computes_is_computed(calls: Calls) -> None:
    """With a bias and with one scale for all rows, which upstream's kernel makes them."""
    plain = make(type(linear()), WIDTH, 96)
    plain.bias.data.normal_()
    x = torch.randn(9, WIDTH, dtype=BFLOAT16)
    expected = plain(x)[0]
    layer = eight_bits(plain, calls, static=True)
    upstream = layer(x)[0]
    near(upstream, expected)
    use_skinny_layers(nn.Sequential(layer))
    torch.testing.assert_close(layer(x)[0], upstream)
    layer(torch.randn(65, WIDTH, dtype=BFLOAT16))
    assert calls[2:] == [("upstream rows", 9), ("skinny", 9), ("upstream rows", 65), ("upstream", 65)]


def other_key(layer: Any) -> None:
    product_of(layer).config.activation_quant_key = None


def other_kernel(layer: Any) -> None:
    layer.quant_method.fp8_linear.__class__ = type("Other", (CutlassFP8ScaledMMLinearKernel,), {})


class OwnMethod(Fp8LinearMethod):
    """Computes something else."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_zeros(len(x), layer.weight.shape[1])


@pytest.mark.parametrize(
    "change",
    [
        other_key,
        other_kernel,
        lambda layer: setattr(layer.quant_method, "__class__", OwnMethod),
        lambda layer: setattr(layer.quant_method, "__class__", Fp8PerBlockOnlineLinearMethod),
        lambda layer: setattr(layer, "input_scale", torch.tensor(1.0)),
        lambda layer: setattr(layer, "input_scale_ub", torch.tensor(1.0)),
        lambda layer: setattr(layer.weight, "data", layer.weight.data.contiguous()),
        lambda layer: setattr(layer.weight, "data", layer.weight.data[:, :88]),
        lambda layer: setattr(layer.weight_scale, "data", layer.weight_scale.data.bfloat16()),
        lambda layer: setattr(layer.weight_scale, "data", torch.ones(4)),
    ],
    ids=[
        "another way to quantise",
        "another kernel",
        "another method",
        "scales per block",
        "a scale that is not used",
        "a bound",
        "another layout",
        "padded",
        "16-bit scale",
        "scales of something else",
    ],
)
def test_layers_that_do_not_suit_stay(change: Any, calls: Calls) -> None:
    layer = eight_bits(linear(), calls)
    change(layer)
    (taken, _, _) = use_skinny_layers(nn.Sequential(layer))
    assert str(taken) == "skinny_linear: 0 of 1 layers"
    assert not isinstance(layer.quant_method.fp8_linear, SkinnyScaledMM)


def test_small_weights_stay(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    layer = eight_bits(linear(), calls)
    (taken, _, _) = use_skinny_layers(nn.Sequential(layer))
    assert taken.layers == 0


@pytest.mark.parametrize("static", [False, True])
def test_the_activation(static: bool, calls: Calls) -> None:
    """With few rows in the product, with many where rows are quantised; upstream's with one scale for all."""
    network = make(Qwen2MLP, WIDTH, INNER, "silu")
    few, many = (torch.randn(rows, WIDTH, dtype=BFLOAT16) for rows in (5, 65))
    expected = network(few), network(many)
    for layer in (network.gate_up_proj, network.down_proj):
        eight_bits(layer, calls, static=static)
    products, gated, _ = use_skinny_layers(network)
    assert str(products) == "skinny_linear: 2 of 2 layers"
    assert str(gated) == "with its activation: 1 of 1 networks"
    assert isinstance(network, SkinnyNetwork)
    near(network(few), expected[0], products=2)
    near(network(many), expected[1], products=2)
    if static:
        assert calls == [
            *[("upstream rows", 5), ("gated", 5), ("upstream rows", 5), ("skinny", 5)],
            *[("upstream rows", 65), ("upstream", 65), ("upstream rows", 65), ("upstream", 65)],
        ]
    else:
        assert calls == [
            *[("rows", 5), ("gated", 5), ("rows", 5), ("skinny", 5)],
            *[("rows", 65), ("upstream", 65), ("activation", 65), ("upstream", 65)],
        ]


def test_a_second_product_of_16_bits(calls: Calls) -> None:
    """Its input stays in 16 bits."""
    network = make(Qwen2MLP, WIDTH, INNER, "silu")
    many = torch.randn(65, WIDTH, dtype=BFLOAT16)
    expected = network(many)
    eight_bits(network.gate_up_proj, calls)
    use_skinny_layers(network)
    near(network(many), expected, products=2)
    assert calls == [("rows", 65), ("upstream", 65)]


def test_a_norm_leaves_the_rows_for_the_product(calls: Calls) -> None:
    """Also with many rows; a product of 16 bits, or with a scale for all rows, takes what it took."""
    norm, narrow = make(RMSNorm, WIDTH), make(RMSNorm, 64)
    first = eight_bits(linear(), calls)
    other = eight_bits(linear(columns=INNER), calls, static=True)
    plain = linear(rows=100)
    _, _, taken = use_skinny_layers(nn.ModuleList([norm, narrow, first, other, plain]))
    assert str(taken) == "add_rms_norm: 2 of 2 norms"
    assert isinstance(norm, SkinnyNorm) and norm.quantises and not narrow.quantises
    for rows in (4, 65):
        x, residual = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(rows)).to(BFLOAT16)
        normed, _ = norm(x, residual)
        expected = reference.skinny_linear(normed, first.weight.t().float() * first.weight_scale, None)
        near(first(normed)[0], expected)
        near(plain(normed)[0], normed @ plain.weight.T)
        assert normed.quantized.quant_key == kFp8DynamicTokenSym
        # What is made of it has none, and is quantised by itself.
        near(first(normed * 1.0)[0], expected)
    assert calls == [
        *[("norm", 4), ("skinny", 4), ("rows", 4), ("skinny", 4)],
        *[("norm", 65), ("upstream", 65), ("rows", 65), ("upstream", 65)],
    ]
    calls.clear()
    x, residual = torch.randn(2, 65, 64).to(BFLOAT16)
    narrow(x, residual)
    assert not calls


def test_a_head_in_eight_bits(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits by the kernels, ids to vectors as before; weights that are loaded later are quantised anew."""
    monkeypatch.setattr(skinny_fp8, "cutlass_fp8_supported", lambda: True)
    head, embedding = make(ParallelLMHead, 96, WIDTH), make(VocabParallelEmbedding, 96, WIDTH)
    model = nn.ModuleList([head, embedding])
    assert str(use_eight_bit_head(model)) == "skinny_linear_fp8: 1 of 1 heads"
    use_skinny_layers(model)
    assert type(embedding.quant_method) is UnquantizedEmbeddingMethod
    method = head.quant_method
    calls.clear()
    for rows in (4, 65):
        x = torch.randn(rows, WIDTH, dtype=BFLOAT16)
        near(method.apply(head, x), x @ head.weight.T)
    assert calls == [("rows", 4), ("skinny", 4), ("rows", 65), ("upstream", 65)]
    assert method.embedding(head, torch.tensor([3])).equal(head.weight[3:4])
    head.weight.data.normal_()
    method.process_weights_after_loading(head)
    x = torch.randn(4, WIDTH, dtype=BFLOAT16)
    near(method.apply(head, x), x @ head.weight.T)


def test_an_embedding_that_is_the_head(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skinny_fp8, "cutlass_fp8_supported", lambda: True)
    embedding = make(VocabParallelEmbedding, 96, WIDTH)
    use_eight_bit_head(nn.ModuleList([embedding]))
    assert isinstance(embedding.quant_method, EightBitHead)


def test_a_head_that_cannot_is_refused(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its shape or dtype, or since no kernel is on the device: at the start, with the reason."""
    monkeypatch.setattr(skinny_fp8, "cutlass_fp8_supported", lambda: True)
    for head in (make(ParallelLMHead, 64, 96), make(ParallelLMHead, 64, WIDTH, dtype=torch.float32)):
        with pytest.raises(ValueError, match=r"head_quantization='fp8' is for a head of bfloat16 or float16"):
            use_eight_bit_head(nn.ModuleList([head]))
    with pytest.raises(ValueError, match="head_quantization='fp8' has no kernel: no CUDA GPU"):
        apply_kernels(VllmConfig(), make(ParallelLMHead, 64, WIDTH), torch.device("cpu"), False, True)


def test_rows_that_another_layer_has_quantised(calls: Calls) -> None:
    """Upstream's own way to pass them on; of one scale for all it is upstream that computes."""
    layer = eight_bits(linear(), calls, static=True)
    use_skinny_layers(nn.Sequential(layer))
    x = torch.randn(4, WIDTH, dtype=BFLOAT16)
    given = QuantizedActivation(
        reference.to_e4m3(x, layer.input_scale), layer.input_scale, BFLOAT16, x.shape, kFp8StaticTensorSym
    )
    near(layer.quant_method.apply(layer, given), x @ (layer.weight.float() * layer.weight_scale).bfloat16())
    assert calls == [("upstream", 4)]
