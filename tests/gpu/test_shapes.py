# SPDX-License-Identifier: Apache-2.0
"""Published shapes with few layers and dummy weights: they start, they decode, memory is as computed."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

from benchmarks.gpu.engine import Workload, run, start, stop
from benchmarks.gpu.shapes import SHAPES

LAYERS = 4
KV_BYTES = 2**30
SETTINGS: dict[str, Any] = {
    "gpu_memory_utilization": 0.3,
    "kv_cache_memory_bytes": KV_BYTES,
    "compilation_config": {"mode": 0, "cudagraph_capture_sizes": [32, 64, 128, 256]},
    "enable_prefix_caching": None,
}
# A multiple of the block: where blocks lie on a grid over prompt and response, another block would begin.
WORK = Workload(batch=4, prompt=64, tokens=64, block=32, steps=4)


def attention(hidden: int, heads: int, kv_heads: int, size: int) -> int:
    """Weights of the projections of one layer."""
    return hidden * size * (2 * heads + 2 * kv_heads)


def parameters(shape: str) -> int:
    """Weights of the shape with ``LAYERS`` layers, by hand; norms and biases, below 0.1 %, left out."""
    c = SHAPES[shape]
    ends: int = 2 * c["vocab_size"] * (c.get("hidden_size") or c["d_model"])
    match shape:
        case "llada-8b":
            layer = attention(4096, 32, 32, 128) + 3 * 4096 * 12288
        case "dream-7b":
            layer = attention(3584, 28, 4, 128) + 3 * 3584 * 18944
        case "sdar-8b":
            layer = attention(4096, 32, 8, 128) + 3 * 4096 * 12288
        case "sdar-30b-a3b":
            layer = attention(2048, 32, 4, 128) + 2048 * 128 + 128 * 3 * 2048 * 768
        case "llada-moe-7b":
            layer = attention(2048, 16, 16, 128) + 2048 * 64 + 64 * 3 * 2048 * 1024
        case "llada2-mini":
            experts = 2048 * 256 + 257 * 3 * 2048 * 512  # one of them is shared
            dense = 3 * 2048 * 5120
            return ends + LAYERS * attention(2048, 16, 4, 128) + dense + (LAYERS - 1) * experts
        case _:
            raise ValueError(shape)
    return ends + LAYERS * layer


def test_a_response_of_one_block() -> None:
    """Dream as it comes: a block is as long as the context, longer than upstream's warm-up thinks."""
    llm = start("dream-7b", {"num_hidden_layers": 1}, max_num_seqs=2, max_model_len=2048, **SETTINGS)
    try:
        timing = run(llm, Workload(batch=2, prompt=70, tokens=1900, block=1900, steps=4), repeats=1, warm=0)
        assert timing.forwards == 4
    finally:
        stop(llm)


# qwen3-8b is upstream's own; llada2-flash has the layers of llada2-mini.
@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"qwen3-8b", "llada2-flash"}))
def test_a_published_shape(shape: str) -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    layers = {"n_layers" if shape == "llada-8b" else "num_hidden_layers": LAYERS}
    llm = start(
        shape,
        layers,
        max_num_seqs=8,
        max_model_len=512,
        max_num_batched_tokens=1024,
        diffusion_config={"block_length": 32},
        **SETTINGS,
    )
    try:
        runner = _runner(llm)
        held = sum(p.numel() * p.element_size() for p in runner.model.parameters())
        wanted = 2 * parameters(shape)
        assert math.isclose(held, wanted, rel_tol=2e-3), (held, wanted)
        # Beside the weights and the cache there are the runner's buffers.
        used = torch.cuda.memory_allocated() - before - wanted - KV_BYTES
        assert 0 <= used < 2**29, used
        timing = run(llm, WORK, repeats=1)
        assert timing.forwards == 8
    finally:
        stop(llm)


def _runner(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
