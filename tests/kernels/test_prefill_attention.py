# SPDX-License-Identifier: Apache-2.0
"""How a step's windows reach the attention kernel through upstream's interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.attention_cases import Batch, assert_close, make_batch
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
)
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.layers.apply import use_block_causal_attention
from vllm.v1.diffusion.layers.prefill_attention import (
    BlockCausalAttentionImpl,
    PrefillAttention,
    StepAttention,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.utils import AttentionGroup

Make = Callable[..., tuple[PrefillAttention, dict[str, Any]]]
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)


def metadata(batch: Batch) -> FlashAttentionMetadata:
    """What upstream's builder makes of a batch that it sees as one sequence per request."""
    starts = batch.query_start_loc
    return FlashAttentionMetadata(
        num_actual_tokens=int(starts[-1]),
        max_query_len=int(starts.diff().max()),
        query_start_loc=starts,
        max_seq_len=int(batch.seq_lens.max()),
        seq_lens=batch.seq_lens,
        block_table=batch.block_table,
        slot_mapping=torch.arange(int(starts[-1])),
        causal=False,
    )


@pytest.fixture
def make() -> Make:
    """Upstream's attention layers, registered as a model's are, with the implementation of a GPU."""

    def made(*changes: dict[str, Any], dtype: str = "bfloat16") -> tuple[PrefillAttention, dict[str, Any]]:
        """A layer for each of ``changes``, which its implementation has."""
        model = str(Path(__file__).parents[1] / "golden" / "sdar")
        config = EngineArgs(model=model, dtype=dtype, enforce_eager=True).create_engine_config()  # type: ignore[arg-type]
        shape: Any = {"num_heads": 8, "head_size": 64, "scale": 64**-0.5, "num_kv_heads": 2}
        layers: dict[str, Any] = {}
        with set_current_vllm_config(config):
            for name, changed in zip("ab", changes, strict=False):
                layers[name] = Attention(**shape, prefix=name)
                layers[name].impl = FlashAttentionImpl(
                    **shape, alibi_slopes=None, sliding_window=None, kv_cache_dtype="auto"
                )
                for attribute, value in changed.items():
                    assert hasattr(layers[name].impl, attribute), attribute
                    setattr(layers[name].impl, attribute, value)
        attention, taken = use_block_causal_attention(config, torch.device("cpu"))
        assert taken.of == len(layers)
        return attention, layers

    return made


def test_windows_reach_the_kernel(make: Make) -> None:
    """Two groups of layers with tables of their own; padding is left alone."""
    prefill, layers = make({}, {})
    assert all(isinstance(layer.impl, BlockCausalAttentionImpl) for layer in layers.values())
    requests = [(40, 0, 4), (16, 32, 16), (4, 8, 4)]
    batches = [make_batch(requests, heads=8, kv_heads=2, spare_rows=5, seed=seed) for seed in (0, 1)]
    rows = np.array([rows for rows, _, _ in requests])
    input_batch = InputBatch.make_dummy(3, 60, InputBuffers(3, 65, torch.device("cpu")))
    input_batch.num_scheduled_tokens = rows
    input_batch.num_computed_tokens_np = np.array([before for _, before, _ in requests])
    input_batch.query_start_loc = batches[0].query_start_loc
    spare = torch.zeros(2, batches[0].block_table.shape[1], dtype=torch.int32)
    attention = StepAttention(
        {name: metadata(batch) for name, batch in zip("ab", batches, strict=True)},
        [[AttentionGroup(FlashAttentionBackend, [name], SPEC, index)] for index, name in enumerate("ab")],
        tuple(torch.cat((batch.block_table, spare)) for batch in batches),
    )
    prefill.attach(attention, input_batch, np.array([block for _, _, block in requests]))
    for (name, layer), batch in zip(layers.items(), batches, strict=True):
        cache = torch.cat([batch.key_cache, batch.value_cache], dim=-1).transpose(1, 2)
        out = torch.full_like(batch.query, 7.0)
        none = torch.empty(0)
        layer.impl.forward(layer, batch.query, none, none, cache, attention.metadata[name], out)
        expected = reference.attention(*batch.arguments())
        assert_close(out[:60], expected[:60])
        assert (out[60:] == 7.0).all()


def test_other_steps_are_upstreams(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, layers = make({})
    layer, batch = layers["a"], make_batch([(4, 8, 4)], heads=8, kv_heads=2)
    monkeypatch.setattr(FlashAttentionImpl, "forward", lambda *args: "upstream's")
    none = torch.empty(0)
    assert layer.impl.forward(layer, none, none, none, none, metadata(batch), none) == "upstream's"


@pytest.mark.parametrize(
    ("group", "blocks", "wanted"), [(4, [31], True), (4, [32], False), (4, [64, 8], True), (8, [16], False)]
)
def test_short_blocks_go_to_the_kernel(make: Make, group: int, blocks: list[int], wanted: bool) -> None:
    attention, _ = make({"num_queries_per_kv": group})
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
def test_layers_that_the_kernel_does_not_know(make: Make, changes: dict[str, Any]) -> None:
    """One such layer, and all stay upstream's."""
    attention, layers = make({}, changes)
    assert not attention.wants(np.array([4]))
    assert type(layers["a"].impl) is FlashAttentionImpl


def test_float32_stays_upstreams(make: Make) -> None:
    attention, layers = make({}, dtype="float32")
    assert not attention.wants(np.array([4]))
    assert type(layers["a"].impl) is FlashAttentionImpl
