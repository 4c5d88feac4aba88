# SPDX-License-Identifier: Apache-2.0
"""The kernels for few rows in whole engines: a bundled model's answers are those that it has without them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.gpu.engines import GRAPHS, engine
from vllm.v1.diffusion.bundled import bundled_path
from vllm.v1.diffusion.demo.puzzles import TASKS, make_puzzle
from vllm.v1.diffusion.layers import apply, skinny_layers


def answers(family: str, fused: bool, **settings: Any) -> list[list[int]]:
    """Ids of 240 puzzles in bfloat16, at most 8 at a time: few rows in every step but the prompts'."""
    prompts = []
    for task in TASKS:
        rng = random.Random(f"{task} 77")
        prompts += [make_puzzle(task, rng).prompt for _ in range(60)]
    with engine(bundled_path(family), dtype="bfloat16", max_num_seqs=8, **GRAPHS, **settings) as llm:
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        kinds = {type(module).__name__ for module in runner.model.modules()}
        assert any(kind.startswith("Fused") for kind in kinds) == fused
        assert ("SkinnyRMSNorm" in kinds) == fused
        params = llm.get_default_sampling_params()
        params.max_tokens = 32
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_answers_stay(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the products for few rows need a GPU of compute capability 9.0")
    # The layers are too small to gain.
    monkeypatch.setattr(skinny_layers, "_LEAST", 0)
    got = answers(family, fused=True)

    def nothing(model: Any) -> list[Any]:
        return []

    monkeypatch.setattr(apply, "fuse_attention", nothing)
    monkeypatch.setattr(apply, "use_skinny_layers", nothing)
    assert got == answers(family, fused=False)


@pytest.mark.parametrize("settings", [{"quantization": "fp8_per_channel"}, {"kv_cache_dtype": "fp8"}])
def test_answers_in_eight_bits_stay(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a few: sums are rounded in another order, and a number in 8 bits may be the next one."""
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the products for few rows need a GPU of compute capability 9.0")
    monkeypatch.setattr(skinny_layers, "_LEAST", 0)
    got = answers("sdar", fused=True, **settings)
    monkeypatch.setattr(apply, "fuse_attention", lambda model: [])
    monkeypatch.setattr(apply, "use_skinny_layers", lambda model: [])
    expected = answers("sdar", fused=False, **settings)
    same = sum(a == b for a, b in zip(got, expected, strict=True))
    assert same >= 0.95 * len(expected), same
