# SPDX-License-Identifier: Apache-2.0
"""Which of upstream's layers take skinny_linear, and what they give it; the layers are upstream's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from tests.kernels.real_models import one_process
from tests.kernels.upstream_layers import INNER, WIDTH, linear, make
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import GeluAndMul
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.bailing_moe import BailingMLP
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2MLP
from vllm.model_executor.models.qwen2_moe import Qwen2MoeMLP
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import skinny_layers
from vllm.v1.diffusion.layers.apply import apply_kernels, use_skinny_layers
from vllm.v1.diffusion.layers.skinny_layers import SkinnyMethod, SkinnyNetwork, SkinnyNorm

COMPRESSED = CompressedTensorsConfig(target_scheme_map={}, ignore=[], quant_format="dense", config={})


@pytest.fixture(scope="module", autouse=True)
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_process(tmp_path_factory.mktemp("groups")), set_current_vllm_config(VllmConfig()):
        yield


def bailing(hidden: int, inner: int, act: str) -> BailingMLP:
    members: dict[str, Any] = {"hidden_size": hidden, "use_bias": False}
    return BailingMLP(inner, PretrainedConfig(**members))


NETWORKS = [Qwen2MLP, LlamaMLP, Qwen2MoeMLP, bailing]


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
    return seen


def test_few_rows_go_to_the_kernel(calls: list[tuple[int, bool]]) -> None:
    layer = linear()
    before = layer.quant_method
    (taken, _, _) = use_skinny_layers(nn.Sequential(layer))
    assert (taken.layers, taken.of) == (1, 1)
    assert isinstance(layer.quant_method, SkinnyMethod) and isinstance(
        layer.quant_method, UnquantizedLinearMethod
    )
    assert layer.quant_method._gemm_impl is before._gemm_impl
    for rows in (1, 64, 65, 200):
        x = torch.randn(rows, WIDTH, dtype=torch.bfloat16)
        torch.testing.assert_close(layer(x)[0], x @ layer.weight.T, rtol=2e-2, atol=2e-2)
    layer(torch.randn(3, 136, dtype=torch.bfloat16)[:, 4:132])  # misaligned rows
    assert calls == [(1, False), (64, False)]


def test_the_head_too(calls: list[tuple[int, bool]]) -> None:
    """And no embedding beside it, but one that is the head itself."""
    head = make(ParallelLMHead, 96, WIDTH)
    embedding = make(VocabParallelEmbedding, 96, WIDTH)
    (taken, _, _) = use_skinny_layers(nn.ModuleList([head, embedding]))
    assert (taken.layers, taken.of) == (1, 1)
    head.quant_method.apply(head, torch.randn(4, WIDTH, dtype=torch.bfloat16))
    assert calls == [(4, False)]
    assert head.quant_method.embedding(head, torch.tensor([3])).equal(head.weight[3:4])
    assert not isinstance(embedding.quant_method, SkinnyMethod)
    use_skinny_layers(nn.ModuleList([embedding]))
    assert isinstance(embedding.quant_method, SkinnyMethod)


class OwnMethod(UnquantizedLinearMethod):
    """Computes something else."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_zeros(len(x), len(layer.weight))


class SameMethod(UnquantizedLinearMethod):
    """Makes weights otherwise, and computes the same."""


def test_what_a_method_computes_decides(calls: list[tuple[int, bool]]) -> None:
    layers = [linear() for _ in range(2)]
    for layer, kind in zip(layers, (OwnMethod, SameMethod), strict=True):
        layer.quant_method.__class__ = kind
    use_skinny_layers(nn.ModuleList(layers))
    assert [isinstance(layer.quant_method, SkinnyMethod) for layer in layers] == [False, True]
    assert isinstance(layers[1].quant_method, SameMethod)


def test_layers_that_do_not_suit_stay(calls: list[tuple[int, bool]]) -> None:
    quantised, elsewhere = linear(), linear()
    quantised.quant_method = CompressedTensorsLinearMethod(COMPRESSED)
    elsewhere.quant_method._gemm_impl = lambda *_: None  # a backend that somebody asked for
    layers = [quantised, elsewhere, linear(dtype=torch.float32), linear(columns=96), linear(rows=100)]
    before = [layer.quant_method for layer in layers]
    (taken, _, _) = use_skinny_layers(nn.ModuleList(layers))
    assert str(taken) == "skinny_linear: 0 of 5 layers"
    assert [layer.quant_method for layer in layers] == before


def test_small_weights_stay() -> None:
    small = make(ColumnParallelLinear, WIDTH, 96, bias=False)
    use_skinny_layers(small)
    assert type(small.quant_method) is UnquantizedLinearMethod


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_activation_is_computed_with_the_product(calls: list[tuple[int, bool]], kind: Any) -> None:
    network = make(kind, WIDTH, INNER, "silu")
    x = torch.randn(5, WIDTH, dtype=torch.bfloat16)
    expected = network(x)
    products, gated, _ = use_skinny_layers(network)
    assert str(products) == "skinny_linear: 2 of 2 layers"
    assert str(gated) == "with its activation: 1 of 1 networks"
    torch.testing.assert_close(network(x), expected, rtol=3e-2, atol=3e-2)
    assert calls == [(5, True), (5, False)]
    many = torch.randn(65, WIDTH, dtype=torch.bfloat16)
    network(many)
    assert len(calls) == 2


class SubclassMLP(Qwen2MLP):
    """Of a plug-in, without a forward of its own."""


class CopiedMLP(nn.Module):
    """The structure, written by somebody else."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.both, self.act, self.back = network.gate_up_proj, network.act_fn, network.down_proj

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.back(self.act(self.both(hidden_states)[0]))[0]
        return out


def test_a_subclass_and_a_copy_of_the_structure(calls: list[tuple[int, bool]]) -> None:
    subclass = make(SubclassMLP, WIDTH, INNER, "silu")
    copied = CopiedMLP(make(Qwen2MLP, WIDTH, INNER, "silu"))
    use_skinny_layers(nn.ModuleList([subclass, copied]))
    assert isinstance(subclass, SkinnyNetwork) and isinstance(copied, SkinnyNetwork)
    x = torch.randn(5, WIDTH, dtype=torch.bfloat16)
    assert torch.equal(subclass(x), copied(hidden_states=x))
    assert calls == 2 * [(5, True), (5, False)]


class ScaledMLP(Qwen2MLP):
    """Does more than the form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x) * 0.5  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize("kind", NETWORKS)
def test_another_activation_is_not(calls: list[tuple[int, bool]], kind: Any) -> None:
    network = make(kind, WIDTH, INNER, "silu")
    network.act_fn = GeluAndMul()
    use_skinny_layers(network)
    assert not isinstance(network, SkinnyNetwork)


def test_another_forward_is_not(calls: list[tuple[int, bool]]) -> None:
    network = make(ScaledMLP, WIDTH, INNER, "silu")
    use_skinny_layers(network)
    assert type(network) is ScaledMLP
    assert isinstance(network.down_proj.quant_method, SkinnyMethod)


def test_a_gated_expert_is_not(calls: list[tuple[int, bool]]) -> None:
    """A shared expert whose output has a gate of its own."""
    network = make(Qwen2MoeMLP, WIDTH, INNER, "silu")
    network.expert_gate = linear(rows=16)
    use_skinny_layers(network)
    assert type(network) is Qwen2MoeMLP


def test_a_norm_between_products(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, bool]]) -> None:
    """With a residual and few rows; not without one, not with many, not beside other products."""
    normed: list[int] = []
    monkeypatch.setattr(skinny_layers, "add_rms_norm", lambda x, *_: normed.append(len(x)))
    norm, other = make(RMSNorm, WIDTH), make(GemmaRMSNorm, WIDTH)
    _, _, taken = use_skinny_layers(nn.ModuleList([norm, other, linear()]))
    assert isinstance(norm, SkinnyNorm) and not isinstance(other, SkinnyNorm)
    assert str(taken) == "add_rms_norm: 1 of 1 norms"
    for rows in (4, 64, 65):
        x, residual = torch.ones(2, rows, WIDTH, dtype=torch.bfloat16)
        out = norm(x, residual)
        if rows <= 64:
            assert out[0] is x and out[1] is residual
        else:
            torch.testing.assert_close(out[0], torch.ones_like(x), rtol=1e-2, atol=1e-2)
    assert normed == [4, 64]
    assert norm(torch.ones(4, WIDTH, dtype=torch.bfloat16)).shape == (4, WIDTH)
    alone = make(RMSNorm, WIDTH)
    use_skinny_layers(nn.ModuleList([alone, linear(rows=100)]))
    assert type(alone) is RMSNorm


def test_nothing_changes_on_a_cpu(calls: list[tuple[int, bool]]) -> None:
    network = make(Qwen2MLP, WIDTH, INNER, "silu")
    assert apply_kernels(VllmConfig(), network, torch.device("cpu"), block_causal=False) is None
    assert type(network) is Qwen2MLP
    assert type(network.down_proj.quant_method) is UnquantizedLinearMethod
