# SPDX-License-Identifier: Apache-2.0
"""How a step's windows reach the attention kernel through upstream's interface."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.attention_cases import assert_close, make_batch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers import prefill_attention
from vllm.v1.diffusion.layers.prefill_attention import BlockCausalAttentionImpl, PrefillAttention


def make_layer(**changes: Any) -> Any:
    """A layer with an implementation as upstream would make it for a GPU."""
    impl: Any = object.__new__(FlashAttentionImpl)
    known: dict[str, Any] = {
        "head_size": 64,
        "scale": 64**-0.5,
        "num_queries_per_kv": 4,
        "attn_type": AttentionType.DECODER,
        "kv_cache_dtype": "auto",
        "sliding_window": (-1, -1),
        "alibi_slopes": None,
        "sinks": None,
        "logits_soft_cap": 0,
        "dcp_world_size": 1,
    }
    vars(impl).update(known | changes)
    return SimpleNamespace(impl=impl)


def make_attention(
    monkeypatch: pytest.MonkeyPatch, layers: dict[str, Any], dtype: torch.dtype = torch.bfloat16
) -> PrefillAttention:
    monkeypatch.setattr(prefill_attention, "get_layers_from_vllm_config", lambda *_: layers)
    config: Any = SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))
    return PrefillAttention(config, torch.device("cpu"))


def test_windows_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of layers with tables of their own; padding is left alone."""
    layers = {"a": make_layer(), "b": make_layer()}
    attention = make_attention(monkeypatch, layers)
    requests = [(40, 0, 4), (16, 32, 16), (4, 8, 4)]
    batches = [make_batch(requests, heads=8, kv_heads=2, spare_rows=5, seed=seed) for seed in (0, 1)]
    input_batch: Any = SimpleNamespace(
        num_reqs=len(requests),
        num_computed_tokens_np=np.array([before for _, before, _ in requests]),
        num_scheduled_tokens=np.array([rows for rows, _, _ in requests]),
        query_start_loc=torch.cat((batches[0].query_start_loc, torch.full((3,), 60, dtype=torch.int32))),
    )
    metadata = {name: SimpleNamespace(num_actual_tokens=60) for name in layers}
    groups: Any = [[SimpleNamespace(layer_names=["a"])], [SimpleNamespace(layer_names=["b"])]]
    block_lengths = np.array([block for _, _, block in requests])
    spare = torch.zeros(2, batches[0].block_table.shape[1], dtype=torch.int32)
    tables = tuple(torch.cat((batch.block_table, spare)) for batch in batches)
    attention.attach(metadata, groups, tables, input_batch, block_lengths)
    for (name, layer), batch in zip(layers.items(), batches, strict=True):
        cache = torch.cat([batch.key_cache, batch.value_cache], dim=-1).transpose(1, 2)
        out = torch.full_like(batch.query, 7.0)
        none = torch.empty(0)
        layer.impl.forward(layer, batch.query, none, none, cache, metadata[name], out)
        expected = reference.attention(*batch.arguments())
        assert_close(out[:60], expected[:60])
        assert (out[60:] == 7.0).all()


def test_other_steps_are_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    make_attention(monkeypatch, {"a": layer})
    monkeypatch.setattr(FlashAttentionImpl, "forward", lambda *args: "upstream's")
    none = torch.empty(0)
    assert layer.impl.forward(layer, none, none, none, none, SimpleNamespace(), none) == "upstream's"


@pytest.mark.parametrize(
    ("group", "blocks", "wanted"), [(4, [31], True), (4, [32], False), (4, [64, 8], True), (8, [16], False)]
)
def test_short_blocks_go_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, group: int, blocks: list[int], wanted: bool
) -> None:
    attention = make_attention(monkeypatch, {"a": make_layer(num_queries_per_kv=group)})
    assert attention.wants(np.array(blocks)) is wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": (127, 0)},
        {"head_size": 256},
        {"kv_cache_dtype": "fp8"},
        {"attn_type": AttentionType.ENCODER_ONLY},
        {"logits_soft_cap": 30.0},
        {"dcp_world_size": 2},
    ],
)
def test_layers_that_the_kernel_does_not_know(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """One such layer, and all stay upstream's."""
    layers = {"a": make_layer(), "b": make_layer(**changes)}
    assert not make_attention(monkeypatch, layers).wants(np.array([4]))
    assert type(layers["a"].impl) is FlashAttentionImpl


def test_float32_stays_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    assert not make_attention(monkeypatch, {"a": layer}, torch.float32).wants(np.array([4]))
    assert type(layer.impl) is not BlockCausalAttentionImpl
