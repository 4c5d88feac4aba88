# SPDX-License-Identifier: Apache-2.0
"""Attention layers of every family, upstream's own objects, with the kernel's reference in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.kernels.real_models import PUBLISHED, build, one_process  # type: ignore[attr-defined]
from vllm.config.compilation import CompilationMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape
from vllm.model_executor.layers.rotary_embedding.linear_scaling_rope import LinearScalingRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import apply, fused_attention
from vllm.v1.diffusion.layers.apply import apply_kernels, fuse_attention
from vllm.v1.diffusion.layers.forms import attention_form
from vllm.v1.diffusion.layers.fused_attention import FusedAttention

PAGE = 16
UNFUSED = ("LLaDA-MoE", "Nemotron-Labs-Diffusion")
"""Their tiny checkpoints do what the kernel does not: clip projections; scale queries by position."""
Builder = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """Builds a family's model."""
    folder = tmp_path_factory.mktemp("models")
    with one_process(folder):
        yield lambda name, **settings: build(name, folder, **settings)


def attention_layers(model: nn.Module) -> list[Any]:
    """The layers that hold upstream's attention."""
    return [m for m in model.modules() if any(isinstance(child, Attention) for child in m.children())]


@pytest.fixture(scope="module")
def sdar_model(built: Builder) -> tuple[Any, Any]:
    return built("SDAR")


@pytest.fixture
def sdar(sdar_model: tuple[Any, Any]) -> Any:
    """An attention layer of SDAR's, upstream's ``Qwen3Attention``, on FlashAttention's implementation."""
    config, model = sdar_model
    layer = attention_layers(model)[0]
    # Upstream's own kind of parameter has no copies; it is there where no kernel packs the weights.
    plain = {id(p): nn.Parameter(p.data.clone(), requires_grad=False) for p in layer.parameters()}
    return on_flash_attention(config, copy.deepcopy(layer, plain))


def on_flash_attention(config: Any, layer: Any, **changes: Any) -> Any:
    """The layer, its attention as on a GPU; ``changes`` go to the implementation."""
    from vllm.config import set_current_vllm_config

    attn = layer.attn
    given: dict[str, Any] = {
        "num_heads": attn.num_heads,
        "head_size": attn.head_size,
        "scale": attn.head_size**-0.5,
        "num_kv_heads": attn.num_kv_heads,
        "alibi_slopes": None,
        "sliding_window": None,
        "kv_cache_dtype": "auto",
    }
    with set_current_vllm_config(config):
        attn.impl = FlashAttentionImpl(**(given | changes))
    return layer


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in the place of the kernel."""

    def computed(
        qkv: Any, heads: int, kv_heads: int, q_weight: Any, k_weight: Any, epsilon: float, table: Any,
        positions: Any, keys: Any = None, values: Any = None, slots: Any = None,
        key_scale: Any = None, value_scale: Any = None, query_scale: Any = None,
    ) -> Any:  # fmt: skip
        def kept(x: torch.Tensor, scale: Any, cache: torch.Tensor) -> torch.Tensor:
            return x if scale is None else reference.to_e4m3(x, scale).view(cache.dtype)

        q, k, v = qkv.unflatten(-1, (heads + 2 * kv_heads, -1)).split((heads, kv_heads, kv_heads), dim=1)
        q.copy_(reference.qk_norm_rope(q, q_weight, epsilon, table, positions))
        k.copy_(reference.qk_norm_rope(k, k_weight, epsilon, table, positions))
        for row, slot in enumerate([] if slots is None else slots.tolist()):
            if slot >= 0:
                keys[slot // keys.shape[1], slot % keys.shape[1]] = kept(k[row], key_scale, keys)
                values[slot // keys.shape[1], slot % keys.shape[1]] = kept(v[row], value_scale, values)
        return None if query_scale is None else reference.to_e4m3(q, query_scale)

    monkeypatch.setattr(fused_attention, "qk_norm_rope_cache", computed)


def query_quantiser(shape: GroupShape) -> Any:
    """What is read of upstream's, which holds no tensors."""
    return SimpleNamespace(static=True, group_shape=shape)


def run(layer: Any, rows: int = 6) -> torch.Tensor:
    """The layer's output, called as its model calls it: by keyword."""
    form = getattr(layer, "form", None) or attention_form(layer)
    names = ("positions", "hidden_states") if form is None else form.arguments
    width = next(child.input_size for child in layer.children() if isinstance(child, QKVParallelLinear))
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, width, generator=generator).bfloat16()
    positions = torch.tensor([0, 7, 8, 99, 1, 30])[:rows]
    given = {name: positions if "position" in name else hidden for name in names}
    with torch.inference_mode():
        output: torch.Tensor = layer(**given)
    return output


def assert_near(got: torch.Tensor, expected: torch.Tensor, error: float = 0.02) -> None:
    """But for bfloat16: upstream rounds the norm's quotient, the norm and the rotation, the kernel once."""
    assert (got - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_family_is_fused_and_computes_the_same(
    name: str, built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run that measures memory: there is no cache yet."""
    _, model = built(name)
    layers = attention_layers(model)
    before = [run(layer) for layer in layers]
    taken = fuse_attention(model)
    if name in UNFUSED:
        assert taken[0].layers == 0
        assert not any(isinstance(layer, FusedAttention) for layer in layers)
        return
    assert (taken[0].layers, taken[0].of) == (len(layers), len(layers))
    for layer, expected in zip(layers, before, strict=True):
        assert isinstance(layer, FusedAttention) and not layer.stores  # the CPU's cache is another
        assert_near(run(layer), expected)


def test_llada_moe_without_clipping(built: Builder) -> None:
    """As published: the norms of a head, and nothing clipped."""
    _, model = built("LLaDA-MoE")
    layers = attention_layers(model)
    for layer in layers:
        layer.clip = None
    before = [run(layer) for layer in layers]
    assert fuse_attention(model)[0].layers == len(layers)
    for layer, expected in zip(layers, before, strict=True):
        assert_near(run(layer), expected)


@pytest.mark.parametrize("name", ["SDAR", "LLaDA2"])
def test_keys_and_values_are_stored(name: str, built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written once, and attention reads it."""
    config, model = built(name)
    layer = on_flash_attention(config, attention_layers(model)[0])
    attn = layer.attn
    size, heads, kv_heads = attn.head_size, attn.num_heads, attn.num_kv_heads
    seen: list[tuple[torch.Tensor, ...]] = []
    attn.forward = lambda *qkv: seen.append(qkv) or qkv[0].contiguous()  # type: ignore[func-returns-value]
    expected = run(layer, rows=3)
    fuse_attention(model)
    assert layer.stores
    pages = torch.zeros(2, kv_heads, PAGE, 2 * size).bfloat16()
    context = (None, None, pages, torch.tensor([17, -1]))
    monkeypatch.setattr(fused_attention, "get_attention_context", lambda name: context)

    def attend(q: Any, k: Any, v: Any, out: Any, name: str) -> None:
        assert name == attn.layer_name and q.shape == out.shape == (3, heads, size)
        out.copy_(q)

    monkeypatch.setattr(fused_attention, "unified_attention_with_output", attend)
    assert_near(run(layer, rows=3), expected)
    assert len(seen) == 1  # upstream's own call, above
    keys, values = torch.split(pages.transpose(1, 2), size, dim=-1)
    _, k, v = seen[0]
    torch.testing.assert_close(keys[1, 1], k[0].view(kv_heads, size), rtol=2e-2, atol=2e-2)
    assert torch.equal(values[1, 1], v[0].view(kv_heads, size))
    assert pages.count_nonzero() == 2 * kv_heads * size


@pytest.mark.parametrize("quantises", [False, True])
def test_a_cache_of_eight_bits(quantises: bool, sdar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values by their scales, as upstream's bytes; queries where attention takes them so."""
    attn = sdar.attn
    size, heads, kv_heads = attn.head_size, attn.num_heads, attn.num_kv_heads
    attn.impl.kv_cache_dtype = "fp8"
    for name, scale in (("_k_scale", 0.05), ("_v_scale", 0.01), ("_q_scale", 0.02)):
        setattr(attn, name, torch.tensor(scale))
    attn.query_quant = query_quantiser(GroupShape.PER_TENSOR) if quantises else None
    seen: list[tuple[torch.Tensor, ...]] = []

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        seen.append(qkv)
        return qkv[0].contiguous()

    attn.forward = attend
    run(sdar, rows=3)
    del attn.forward
    (taken,) = fuse_attention(sdar)
    assert str(taken) == "qk_norm_rope_cache: 1 of 1 attention layers"
    assert sdar.stores and sdar.eight
    pages = torch.zeros(2, kv_heads, PAGE, 2 * size, dtype=torch.uint8)
    context = (None, None, pages, torch.tensor([17, -1]))
    monkeypatch.setattr(fused_attention, "get_attention_context", lambda name: context)
    queries: list[torch.Tensor] = []
    monkeypatch.setattr(
        fused_attention, "unified_attention_with_output", lambda q, k, v, out, name: queries.append(q)
    )
    run(sdar, rows=3)
    (q, k, v), (got,) = seen[0], queries
    assert got.shape == (3, heads, size)
    assert got.dtype == (torch.float8_e4m3fn if quantises else torch.bfloat16)
    assert_near(got.float() * (0.02 if quantises else 1.0), q.view(3, heads, size).float(), 0.05)
    keys, values = torch.split(pages.view(torch.float8_e4m3fn).transpose(1, 2).float(), size, dim=-1)
    assert_near(keys[1, 1] * 0.05, k[0].view(kv_heads, size).float(), 0.05)
    assert_near(values[1, 1] * 0.01, v[0].view(kv_heads, size).float(), 0.05)
    assert not keys[0].any() and not keys[1, 2:].any()


class Renamed(nn.Module):
    """The form, written by somebody else: other names, another order of arguments."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.fused_in, self.fused_out = layer.qkv_proj, layer.o_proj
        self.of_keys, self.of_queries = layer.k_norm, layer.q_norm
        self.turn, self.core = layer.rotary_emb, layer.attn
        self.sizes = [layer.q_size, layer.kv_size, layer.kv_size]
        self.head = layer.head_dim

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.fused_in(x)[0].split(self.sizes, dim=-1)
        q = self.of_queries(q.reshape(len(x), -1, self.head)).flatten(1)
        k = self.of_keys(k.reshape(len(x), -1, self.head)).flatten(1)
        q, k = self.turn(position_ids, q, k)
        out: torch.Tensor = self.fused_out(self.core(q, k, v))[0]
        return out


class Subclass(Qwen3Attention):
    """Adds nothing to the forward."""


def test_a_subclass_and_a_copy_of_the_structure(sdar: Any) -> None:
    """What a new family or a plug-in has; nobody names them."""
    expected = run(sdar)
    sdar.__class__ = Subclass
    renamed = Renamed(sdar)
    model = nn.ModuleList([sdar, renamed])
    assert fuse_attention(model)[0].layers == 2
    assert type(sdar).__name__ == "FusedSubclass" and isinstance(sdar, Subclass)
    assert type(renamed).__name__ == "FusedRenamed"
    assert_near(run_fused(sdar), expected)
    assert_near(run_fused(renamed), expected)


def run_fused(layer: Any) -> torch.Tensor:
    """A fused layer's output without a cache."""
    layer.stores = False
    return run(layer)


class OtherForm(Qwen3Attention):
    """Something between the parts that the kernel does not do."""

    change: str

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        by_head = (-1, self.head_dim)
        if self.change == "rotated first":
            q, k = self.rotary_emb(positions, q, k)
        if self.change != "keys without a norm":
            k = self.k_norm(k.unflatten(-1, by_head)).flatten(-2)
        q = self.q_norm(q.unflatten(-1, by_head)).flatten(-2)
        if self.change == "clipped":
            v = v.clamp(-100, 100)
        if self.change == "late positions scaled":
            q = q * (1 + (positions > 10_000)[:, None] * 0.1)
        if self.change != "rotated first":
            q, k = self.rotary_emb(positions, q, k)
        attended = self.attn(q, k, v)
        if self.change == "gated":
            attended = attended * torch.sigmoid(hidden_states[:, :1])
        output: torch.Tensor = self.o_proj(attended)[0]
        return output * 2 if self.change == "scaled" else output


OTHERS = [
    "rotated first", "keys without a norm", "clipped", "late positions scaled", "gated", "scaled"
]  # fmt: skip


@pytest.mark.parametrize("change", ["", *OTHERS])
def test_what_a_forward_does_decides(change: str, sdar: Any) -> None:
    sdar.__class__ = OtherForm
    sdar.change = change
    fuse_attention(sdar)
    assert isinstance(sdar, FusedAttention) == (change == "")


def test_a_failing_forward_is_left_alone(sdar: Any) -> None:
    class Fails(Qwen3Attention):
        def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not on this device")

    sdar.__class__ = Fails
    assert attention_form(sdar) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.rotary_emb, "is_neox_style", False),
        lambda layer: setattr(layer.rotary_emb, "rotary_dim", layer.head_dim // 2),
        lambda layer: setattr(layer.q_norm, "weight", nn.Parameter(torch.ones(layer.head_dim))),
        lambda layer: setattr(layer.k_norm, "variance_epsilon", 0.1),
        lambda layer: setattr(layer.rotary_emb, "__class__", MRotaryEmbedding),
        lambda layer: setattr(layer.q_norm, "__class__", GemmaRMSNorm),
        lambda layer: layer.rotary_emb.float(),
    ],
    ids=[
        "interleaved",
        "another table",
        "float32 norm",
        "norms that differ",
        "another rotation",
        "another norm",
        "float32 table",
    ],
)
def test_what_the_parts_compute_decides(change: Any, sdar: Any) -> None:
    change(sdar)
    fuse_attention(sdar)
    assert type(sdar) is Qwen3Attention


def test_a_rotation_of_other_angles_is_the_same_rotation(sdar: Any) -> None:
    sdar.rotary_emb.__class__ = LinearScalingRotaryEmbedding
    fuse_attention(sdar)
    assert isinstance(sdar, FusedAttention)


def with_eight_bits(attn: Any, name: str, value: Any) -> None:
    """Gives a layer an FP8 cache, and something that does not go with it."""
    attn.impl.kv_cache_dtype = "fp8"
    setattr(attn, name, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda attn: setattr(attn.impl, "kv_cache_dtype", "fp8_e5m2"),
        lambda attn: with_eight_bits(attn, "_k_scale", torch.ones(2)),
        lambda attn: with_eight_bits(attn, "query_quant", query_quantiser(GroupShape(-1, 64))),
        lambda attn: setattr(attn.impl, "attn_type", AttentionType.ENCODER_ONLY),
        lambda attn: setattr(attn, "impl", object()),
        lambda attn: setattr(attn, "kv_sharing_target_layer_name", "another"),
    ],
    ids=["e5m2", "scales of heads", "queries' scales of heads", "encoder", "another backend", "shared"],
)
def test_another_cache_is_left_to_upstream(change: Any, sdar: Any) -> None:
    change(sdar.attn)
    (taken,) = fuse_attention(sdar)
    assert isinstance(sdar, FusedAttention) and not sdar.stores
    assert str(taken) == "qk_norm_rope_cache: 1 of 1 attention layers, 0 of them with the cache"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (CompilationMode.NONE, ["qk_norm_rope_cache: 3 of 3 attention layers", "no CUDA GPU"]),
        (CompilationMode.VLLM_COMPILE, ["qk_norm_rope_cache: none, the model is compiled", "no CUDA GPU"]),
    ],
)
def test_the_log_says_how_many(
    mode: CompilationMode, said: list[str], built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a platform that says it is CUDA; the device is none, and has no products for few rows."""
    config, model = built("SDAR")
    config.compilation_config.mode = mode
    lines: list[str] = []
    monkeypatch.setattr(apply, "current_platform", SimpleNamespace(is_cuda=lambda: True))
    monkeypatch.setattr(apply.logger, "info", lambda text, *args: lines.append(text % args))
    apply_kernels(config, model, torch.device("cpu"), block_causal=True)
    (line,) = lines
    assert line.startswith("Kernels: ")
    assert all(part in line for part in (*said, "block_causal_attention: 0 of 3 attention layers"))
    fused = sum(isinstance(module, FusedAttention) for module in model.modules())
    assert fused == (3 if mode == CompilationMode.NONE else 0)
