# SPDX-License-Identifier: Apache-2.0
"""Which layers take skinny_linear, and what they give it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import default_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2MLP
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import skinny_layers
from vllm.v1.diffusion.layers.skinny_layers import SkinnyEmbeddingMethod, SkinnyLinearMethod, suit_layers


class Layer(nn.Module):
    """What the methods see of a layer."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        weight = (torch.randn(rows, columns) / columns**0.5).to(dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method: Any = plain_method()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.quant_method.apply(self, x), None


class MergedLayer(Layer):
    """In the place of upstream's, which wants a process group."""


def plain_method(gemm: Any = default_unquantized_gemm) -> Any:
    method: Any = object.__new__(UnquantizedLinearMethod)
    method._gemm_impl = gemm
    return method


def make_network(kind: type[nn.Module]) -> Any:
    """A feed-forward network whose parallel layers are made by hand: there is no process group."""
    network: Any = object.__new__(kind)
    nn.Module.__init__(network)
    network.gate_up_proj = MergedLayer(512, 128)
    vars(network.gate_up_proj).update(gather_output=False, skip_bias_add=False, bias=None)
    network.down_proj = Layer(128, 256)
    act: Any = object.__new__(SiluAndMul)
    nn.Module.__init__(act)
    act._forward_method = SiluAndMul.forward_native
    network.act_fn = act
    return network


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Rows of each call of the kernel, and whether it was gated; the reference computes it."""
    seen: list[tuple[int, bool]] = []

    def kernel(x: Any, weight: Any, bias: Any, arrived: Any, gated: bool = False) -> torch.Tensor:
        assert len(arrived) * 64 >= len(weight)
        assert not arrived.any()
        seen.append((len(x), gated))
        return reference.skinny_linear(x, weight, bias, gated).to(x.dtype)

    monkeypatch.setattr(skinny_layers, "skinny_linear", kernel)
    monkeypatch.setattr(skinny_layers, "_LEAST", 1)
    monkeypatch.setattr(skinny_layers, "MergedColumnParallelLinear", MergedLayer)
    return seen


def test_few_rows_go_to_the_kernel(calls: list[tuple[int, bool]]) -> None:
    layer = Layer(96, 128)
    before = layer.quant_method
    suit_layers(nn.Sequential(layer))
    assert type(layer.quant_method) is SkinnyLinearMethod
    assert layer.quant_method._gemm_impl is before._gemm_impl
    for rows in (1, 64, 65, 200):
        x = torch.randn(rows, 128, dtype=torch.bfloat16)
        torch.testing.assert_close(layer(x)[0], x @ layer.weight.T, rtol=2e-2, atol=2e-2)
    layer(torch.randn(3, 136, dtype=torch.bfloat16)[:, 4:132])  # misaligned rows
    assert calls == [(1, False), (64, False)]


def test_the_head_too(calls: list[tuple[int, bool]]) -> None:
    head = Layer(96, 128)
    head.quant_method = UnquantizedEmbeddingMethod()
    suit_layers(head)
    assert type(head.quant_method) is SkinnyEmbeddingMethod
    head(torch.randn(4, 128, dtype=torch.bfloat16))
    assert calls == [(4, False)]
    assert head.quant_method.embedding(head, torch.tensor([3])).equal(head.weight[3:4])


def test_layers_that_do_not_suit_stay(calls: list[tuple[int, bool]]) -> None:
    quantised, elsewhere = Layer(96, 128), Layer(96, 128)
    quantised.quant_method = SimpleNamespace()
    elsewhere.quant_method = plain_method(lambda *_: None)  # a backend that somebody asked for
    layers = [quantised, elsewhere, Layer(96, 128, torch.float32), Layer(96, 96), Layer(100, 128)]
    before = [layer.quant_method for layer in layers]
    suit_layers(nn.ModuleList(layers))
    assert [layer.quant_method for layer in layers] == before


def test_small_weights_stay() -> None:
    small = Layer(96, 128)
    suit_layers(small)
    assert type(small.quant_method) is UnquantizedLinearMethod


@pytest.mark.parametrize("kind", [Qwen2MLP, LlamaMLP])
def test_the_activation_is_computed_with_the_product(
    calls: list[tuple[int, bool]], kind: type[nn.Module]
) -> None:
    network = make_network(kind)
    x = torch.randn(5, 128, dtype=torch.bfloat16)
    gate, up = (x @ network.gate_up_proj.weight.T).chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(gate) * up) @ network.down_proj.weight.T
    suit_layers(network)
    torch.testing.assert_close(network(x), expected, rtol=3e-2, atol=3e-2)
    assert calls == [(5, True), (5, False)]


@pytest.mark.parametrize("kind", [Qwen2MLP, LlamaMLP])
def test_another_activation_is_not(calls: list[tuple[int, bool]], kind: type[nn.Module]) -> None:
    network = make_network(kind)
    network.act_fn = nn.Identity()
    suit_layers(network)
    assert type(network) is kind


def make_norm() -> Any:
    norm: Any = object.__new__(RMSNorm)
    nn.Module.__init__(norm)
    norm.weight = nn.Parameter(torch.ones(128, dtype=torch.bfloat16), requires_grad=False)
    vars(norm).update(variance_epsilon=1e-6, variance_size_override=None, has_weight=True)
    vars(norm).update(pass_weight_add=True, _forward_method=lambda x, residual=None: ("upstream", residual))
    return norm


def test_a_norm_between_products(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, bool]]) -> None:
    """With a residual and few rows; not without one, not with many, not beside other products."""
    norms: list[int] = []
    monkeypatch.setattr(skinny_layers, "add_rms_norm", lambda x, *_: norms.append(len(x)))
    norm = make_norm()
    suit_layers(nn.ModuleList([norm, Layer(96, 128)]))
    for rows in (4, 64, 65):
        x, residual = torch.zeros(2, rows, 128, dtype=torch.bfloat16)
        out = norm(x, residual)
        assert out[0] is x if rows <= 64 else out[0] == "upstream"
        assert out[1] is residual
    assert norm(x[:4]) == ("upstream", None)
    assert norms == [4, 64]
    alone = make_norm()
    suit_layers(nn.ModuleList([alone, Layer(100, 128)]))
    assert type(alone) is RMSNorm


def test_nothing_changes_on_a_cpu() -> None:
    layer = Layer(96, 128)
    before = layer.quant_method
    config: Any = SimpleNamespace()
    skinny_layers.use_skinny_layers(config, layer, torch.device("cpu"))
    assert layer.quant_method is before
