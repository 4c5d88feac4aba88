# SPDX-License-Identifier: Apache-2.0
"""Which attention layers take qk_norm_rope_cache, and that they compute what upstream's do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm.config.compilation import CompilationMode
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.llama import LlamaAttention
from vllm.model_executor.models.qwen2 import Qwen2Attention
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import fused_attention
from vllm.v1.diffusion.layers.fused_attention import fuse_attention

HEADS, KV_HEADS, HEAD, HIDDEN, PAGE = 4, 2, 64, 32, 16
KINDS = [LlamaAttention, Qwen2Attention, Qwen3Attention]


class Layer(nn.Linear):
    """A parallel layer's signature."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


class Attn(nn.Module):
    """Gives back its queries; keeps what it was called with."""

    layer_name = "layer"
    kv_sharing_target_layer_name: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.impl: Any = object.__new__(FlashAttentionImpl)
        self.impl.attn_type = AttentionType.DECODER
        self.impl.kv_cache_dtype = "auto"
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(self, *qkv: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.clone() for x in qkv))
        return qkv[0]


def make_attention(kind: type[nn.Module], dtype: torch.dtype = torch.bfloat16) -> Any:
    """A layer whose parallel parts are made by hand: there is no process group."""
    torch.manual_seed(1)
    attention: Any = object.__new__(kind)
    nn.Module.__init__(attention)
    attention.num_heads, attention.num_kv_heads, attention.head_dim = HEADS, KV_HEADS, HEAD
    attention.q_size, attention.kv_size = HEADS * HEAD, KV_HEADS * HEAD
    attention.qkv_proj = Layer(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD, dtype=dtype)
    attention.o_proj = Layer(HEADS * HEAD, HIDDEN, dtype=dtype)
    rotary: Any = object.__new__(RotaryEmbedding)
    nn.Module.__init__(rotary)
    rotary.head_size = rotary.rotary_dim = HEAD
    rotary.max_position_embeddings, rotary.base, rotary.is_neox_style = 100, 10000.0, True
    rotary.register_buffer("cos_sin_cache", rotary._compute_cos_sin_cache().to(dtype))
    rotary._forward_method = lambda positions, q, k: rotated(rotary, positions, q, k)
    attention.rotary_emb = rotary
    attention.attn = Attn()
    if kind is Qwen2Attention:
        attention.qk_norm = False
    if kind is Qwen3Attention:
        for name in ("q_norm", "k_norm"):
            norm: Any = object.__new__(RMSNorm)
            nn.Module.__init__(norm)
            norm.weight = nn.Parameter(torch.randn(HEAD).to(dtype), requires_grad=False)
            norm.variance_epsilon = 1e-6
            norm._forward_method = lambda x, n=norm: nn.functional.rms_norm(x, (HEAD,), n.weight, 1e-6)
            setattr(attention, name, norm)
    return attention.requires_grad_(False)


def rotated(rotary: Any, positions: torch.Tensor, *heads: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Upstream's own arithmetic."""
    cosine, sine = rotary.cos_sin_cache[positions].chunk(2, dim=-1)

    def one(x: torch.Tensor) -> torch.Tensor:
        low, high = x.view(len(x), -1, HEAD).float().chunk(2, dim=-1)
        c, s = cosine.unsqueeze(1).float(), sine.unsqueeze(1).float()
        return torch.cat((low * c - high * s, high * c + low * s), dim=-1).view_as(x).to(x.dtype)

    return tuple(one(x) for x in heads)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in the place of the kernel, on a platform that says it is CUDA."""

    def computed(
        qkv: Any, heads: int, kv_heads: int, q_weight: Any, k_weight: Any, epsilon: float, table: Any,
        positions: Any, keys: Any = None, values: Any = None, slots: Any = None,
    ) -> None:  # fmt: skip
        head = table.shape[1]
        q, k, v = qkv.view(len(qkv), -1, head).split((heads, kv_heads, kv_heads), dim=1)
        q.copy_(reference.qk_norm_rope(q, q_weight, epsilon, table, positions))
        k.copy_(reference.qk_norm_rope(k, k_weight, epsilon, table, positions))
        for row, slot in enumerate([] if slots is None else slots.tolist()):
            if slot >= 0:
                keys[slot // keys.shape[1], slot % keys.shape[1]] = k[row]
                values[slot // keys.shape[1], slot % keys.shape[1]] = v[row]

    monkeypatch.setattr(fused_attention, "qk_norm_rope_cache", computed)
    monkeypatch.setattr(fused_attention, "current_platform", SimpleNamespace(is_cuda=lambda: True))


def config(mode: CompilationMode | None = None) -> Any:
    return SimpleNamespace(compilation_config=SimpleNamespace(mode=mode))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cache_it_is_upstream(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run that measures memory: queries, keys and values are those that upstream makes."""
    x = torch.randn(5, HIDDEN).bfloat16()
    positions = torch.tensor([0, 7, 8, 99, 1])
    plain, fused = make_attention(kind), make_attention(kind)
    fuse_attention(config(), fused)
    assert type(fused) is not kind
    assert fused.stores
    monkeypatch.setattr(fused_attention, "get_attention_context", lambda name: (None, None, None, None))
    torch.testing.assert_close(fused(positions, x), plain(positions, x), rtol=2e-2, atol=2e-2)
    for got, expected in zip(fused.attn.seen[0], plain.attn.seen[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_are_stored(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written once, and attention reads it."""
    layer = make_attention(kind)
    x, positions = torch.randn(3, HIDDEN).bfloat16(), torch.tensor([3, 4, 5])
    layer.attn.seen.clear()
    plain = make_attention(kind)
    expected = plain(positions, x)
    fuse_attention(config(), layer)
    pages = torch.zeros(2, KV_HEADS, PAGE, 2 * HEAD).bfloat16()
    context = (None, None, pages, torch.tensor([17, -1]))
    monkeypatch.setattr(fused_attention, "get_attention_context", lambda name: context)

    def attend(q: Any, k: Any, v: Any, out: Any, name: str) -> None:
        assert name == "layer"
        out.copy_(q)

    monkeypatch.setattr(fused_attention, "unified_attention_with_output", attend)
    torch.testing.assert_close(layer(positions, x), expected, rtol=2e-2, atol=2e-2)
    assert not layer.attn.seen
    keys, values = torch.split(pages.transpose(1, 2), HEAD, dim=-1)
    _, k, v = plain.attn.seen[0]
    torch.testing.assert_close(keys[1, 1], k[0].view(KV_HEADS, HEAD), rtol=2e-2, atol=2e-2)
    assert torch.equal(values[1, 1], v[0].view(KV_HEADS, HEAD))
    assert pages.count_nonzero() == 2 * KV_HEADS * HEAD


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.rotary_emb, "is_neox_style", False),
        lambda layer: setattr(layer.rotary_emb, "rotary_dim", HEAD // 2),
        lambda layer: setattr(layer.q_norm, "weight", nn.Parameter(torch.ones(HEAD))),
        lambda layer: setattr(layer, "rotary_emb", RotaryLike.like(layer.rotary_emb)),
    ],
    ids=["interleaved", "partial", "float32 norm", "another rotation"],
)
def test_others_stay(change: Any) -> None:
    layer = make_attention(Qwen3Attention)
    change(layer)
    fuse_attention(config(), layer)
    assert type(layer) is Qwen3Attention


class RotaryLike(RotaryEmbedding):
    """A rotation of another kind."""

    @classmethod
    def like(cls, rotary: Any) -> Any:
        rotary.__class__ = cls
        return rotary


def test_float32_and_compiled_models_stay() -> None:
    layer = make_attention(LlamaAttention, torch.float32)
    fuse_attention(config(), layer)
    assert type(layer) is LlamaAttention
    layer = make_attention(LlamaAttention)
    fuse_attention(config(CompilationMode.VLLM_COMPILE), layer)
    assert type(layer) is LlamaAttention


@pytest.mark.parametrize(
    "change",
    [
        lambda attn: setattr(attn.impl, "kv_cache_dtype", "fp8"),
        lambda attn: setattr(attn.impl, "attn_type", AttentionType.ENCODER_ONLY),
        lambda attn: setattr(attn, "impl", object()),
        lambda attn: setattr(attn, "kv_sharing_target_layer_name", "another"),
    ],
    ids=["fp8", "encoder", "another backend", "shared"],
)
def test_another_cache_is_left_to_upstream(change: Any) -> None:
    layer = make_attention(Qwen3Attention)
    change(layer.attn)
    fuse_attention(config(), layer)
    assert not layer.stores
    layer(torch.tensor([2]), torch.randn(1, HIDDEN).bfloat16())
    assert len(layer.attn.seen) == 1
