# SPDX-License-Identifier: Apache-2.0
"""Whole steps, from a batch's preparation to its sampled tokens, never wait for the device.

The block-causal, bidirectional and shifted loops with every built-in policy and every feature that they
take, under CUDA's own check. Grammars are left out: a step that holds one waits once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine.cases import random_prompt
from tests.engine.conftest import GOLDEN
from tests.gpu.engines import EAGER, GRAPHS, engine

FEATURES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "trace": {"extra_args": {"diffusion_trace": True}},
    "candidates": {"extra_args": {"diffusion_trace": True, "diffusion_trace_top_k": 3}},
    "template": {"extra_args": {"diffusion_seed_canvas": [1, 2, 3, 4, 5, 6], "diffusion_pinned": [1, 4]}},
    "guidance": {"extra_args": {"diffusion_cfg_scale": 1.5}},
    "steps": {"extra_args": {"diffusion_max_steps": 2}},
    "exit": {"extra_args": {"diffusion_exit_threshold": 0.3}},
    "stop": {"extra_args": {"diffusion_eos_early_stop": True}, "stop_token_ids": [5]},
    "temperature": {"temperature": 0.8, "seed": 3},
    "filters": {"temperature": 0.8, "seed": 3, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    "bias": {"logit_bias": {3: 4.0, 7: -2.0}, "min_tokens": 9},
    "allowed": {"allowed_token_ids": list(range(3, 90))},
    "bad words": {"bad_words": ["t1 t2", "t3", "t5 t6 t7"]},
    "log probabilities": {"logprobs": 3},
    "late": {"extra_args": {"diffusion_confidence_eos_eot_inf": True}},
}
STEPWISE = (
    "threshold",
    "confidence_threshold",
    "low_confidence_dynamic",
    "sub_blocks",
    "hierarchical",
    "credit",
)
NEEDS: dict[str, dict[str, float]] = {
    "entropy_bounded": {"entropy_bound": 0.5},
    "factor": {"factor": 0.5},
    **{name: {"threshold": 0.4} for name in STEPWISE},
}
"""What a policy needs to be given, or takes several steps with."""


@contextmanager
def watched(llm: Any) -> Iterator[None]:
    """Has CUDA raise for whatever waits in the runner's two halves of a step."""
    import torch

    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    halves = ("execute_model", "sample_tokens")
    before = {name: getattr(runner, name) for name in halves}

    def strictly(half: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return half(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    for name, half in before.items():
        setattr(runner, name, strictly(half))
    try:
        yield
    finally:
        for name in halves:
            delattr(runner, name)


def check(llm: Any) -> None:
    """Each policy and each feature alone, then all of them in one batch."""
    from vllm import SamplingParams
    from vllm.v1.diffusion.policies.registry import built_in_policies

    given = [
        {
            "extra_args": {"diffusion_algorithm": name}
            | {f"diffusion_{key}": value for key, value in NEEDS.get(name, {}).items()}
        }
        for name in built_in_policies()
    ]
    params, refused = [], []
    for one in [*given, *FEATURES.values()]:
        made = SamplingParams(
            **{"temperature": 0.0, "seed": 5, "max_tokens": 24, "ignore_eos": True, "detokenize": False} | one
        )
        try:  # A family without end tokens that come late, or without a policy, says so.
            llm.llm_engine.input_processor.process_inputs(
                "0", {"type": "token", "prompt_token_ids": [1, 2, 3]}, made, supported_tasks=("generate",)
            )
        except ValueError as error:
            refused.append(str(error))
            continue
        params.append(made)
    assert len(params) > 20, refused
    prompts = [{"prompt_token_ids": list(random_prompt(4 + 5 * i, i))} for i in range(len(params))]

    def all_of_them() -> list[list[int]]:
        outputs = [
            llm.generate([p], [one], use_tqdm=False)[0] for p, one in zip(prompts, params, strict=True)
        ]
        outputs += llm.generate(prompts, params, use_tqdm=False)
        assert all(output.outputs[0].finish_reason in ("length", "stop") for output in outputs)
        return [list(output.outputs[0].token_ids) for output in outputs]

    wanted = all_of_them()  # Kernels are loaded and tuned when they are first called.
    with watched(llm):
        assert all_of_them() == wanted


def test_the_watch_sees_what_waits() -> None:
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(3, device="cuda")[[0, 1]] = 2.0
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("settings", [EAGER, GRAPHS], ids=["eager", "graphs"])
def test_block_causal(settings: dict[str, Any]) -> None:
    with engine("sdar", diffusion_config={"block_length": 16}, max_num_seqs=64, **settings) as llm:
        check(llm)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_bidirectional(cache: str) -> None:
    settings = GRAPHS | {"max_model_len": 512, "max_num_batched_tokens": 512}
    config = {"block_length": 32, "cache": cache}
    with engine("llada", diffusion_config=config, max_num_seqs=64, **settings) as llm:
        check(llm)


def test_bidirectional_shifted(tmp_path: Path) -> None:
    model = str(checkpoints.dream(tmp_path / "dream", GOLDEN / "dream"))
    with engine(model, max_num_seqs=64, max_model_len=512, **GRAPHS) as llm:
        check(llm)


def test_shifted(tmp_path: Path) -> None:
    checkpoints.fast_dllm_v2(tmp_path)
    with engine(str(tmp_path), max_num_seqs=64, **GRAPHS) as llm:
        check(llm)
