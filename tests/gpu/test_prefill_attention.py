# SPDX-License-Identifier: Apache-2.0
"""Prompts in short blocks go to our attention kernel, and it gives what FlashAttention gives."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu.engine import Workload, run, start, stop


@pytest.mark.parametrize("block", [4, 32])
def test_a_long_prompt(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
    from vllm.v1.diffusion.layers.prefill_attention import BlockCausalAttentionImpl

    ours: Any = BlockCausalAttentionImpl.forward
    upstream: Any = FlashAttentionImpl.forward
    differences: list[float] = []

    def both(self: Any, layer: Any, *args: Any, output: Any, **rest: Any) -> Any:
        metadata = args[-1]
        if getattr(metadata, "block_windows", None) is None:
            return ours(self, layer, *args, output=output, **rest)
        wanted = torch.empty_like(output)
        upstream(self, layer, *args, output=wanted, **rest)
        ours(self, layer, *args, output=output, **rest)
        used = metadata.num_actual_tokens
        spread = wanted[:used].float().std()
        differences.append(((output[:used] - wanted[:used]).abs().max() / spread).item())
        return output

    monkeypatch.setattr(BlockCausalAttentionImpl, "forward", both)
    llm = start(
        "sdar-8b",
        {"num_hidden_layers": 2},
        max_num_seqs=4,
        max_model_len=4096,
        max_num_batched_tokens=1024,
        gpu_memory_utilization=0.5,
        kv_cache_memory_bytes=2**30,
        diffusion_config={"block_length": block},
        compilation_config={"mode": 0, "cudagraph_capture_sizes": [block, 4 * block]},
    )
    try:
        differences.clear()  # what the warm-up left
        run(llm, Workload(batch=3, prompt=1501, tokens=64, block=block, steps=2), repeats=1, warm=0)
    finally:
        stop(llm)
    # 32 rows of 4 heads fill a tile of FlashAttention's: those stay with it.
    assert bool(differences) == (block == 4)
    assert all(difference < 0.1 for difference in differences), max(differences)
