# SPDX-License-Identifier: Apache-2.0
"""Options of the engine that a diffusion model cannot have are refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN
from tests.engine.published import PUBLISHED
from vllm.v1.diffusion import families


@pytest.mark.parametrize(
    "option",
    [
        {"enable_prompt_embeds": True},
        {"kv_offloading_size": 1.0},
        {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_both"}},
        {"logits_processors": ["vllm.v1.sample.logits_processor:MinPLogitsProcessor"]},
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        # An engine that passed the start, and answered no request.
        {"runner": "pooling"},
        {"convert": "embed"},
        # What has no effect on a canvas.
        {"return_sampling_mask": True, "logprobs_mode": "processed_logprobs"},
        {"enable_trace_replay": True},
        {"use_fp64_gumbel": True},
        {"enable_batch_sharded_sampling": True},
        {"enable_dbo": True},
        {"ubatch_size": 2},
    ],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("model", ["sdar", "llada"])
def test_an_option_is_refused_by_its_name(option: dict[str, Any], model: str) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion import bundled_path

    name = next(iter(option))
    with pytest.raises(ValueError, match=rf"{name}\S*( > 1)? is not supported with diffusion models"):
        EngineArgs(model=bundled_path(model), **option).create_engine_config()


def test_experts_are_not_returned() -> None:
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match="enable_return_routed_experts is not supported with diffusion"):
        EngineArgs(
            model=str(GOLDEN / "llada2"),
            skip_tokenizer_init=True,
            max_model_len=256,
            enable_return_routed_experts=True,
        ).create_engine_config()


def test_a_scheduler_that_plans_no_canvas_is_refused() -> None:
    """It would never get a request on: the engine passed the start and hung."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.diffusion import bundled_path

    name = "vllm.v1.core.sched.scheduler.Scheduler"
    for given in (name, Scheduler):
        with pytest.raises(ValueError, match=r"scheduler_cls=.* is not supported with diffusion models"):
            EngineArgs(model=bundled_path(), scheduler_cls=given).create_engine_config()
    own = "vllm.v1.diffusion.core.scheduler.DiffusionScheduler"
    config = EngineArgs(model=bundled_path(), scheduler_cls=own).create_engine_config()
    assert config.scheduler_config.scheduler_cls == own


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("llada", {"end_token_ids": [3, 512]}, "end_token_ids must be ids from 0 to 511, not 512"),
        ("llada", {"end_token_ids": [-1]}, "end_token_ids must be ids from 0 to 511, not -1"),
        ("sdar", {"mask_token_id": 512}, "mask_token_id=512 .* is outside the vocabulary of 512"),
        (
            "sdar",
            {"algorithm": "insert_delete"},
            "algorithm='insert_delete' needs a model with a delete_token",
        ),
        ("sdar", {"algorithm": "d3llm"}, "algorithm='d3llm' is not for this model, but for bidirectional"),
        ("dreamon", {"algorithm": "d3llm"}, "algorithm='d3llm' is not for this model, but for bidirectional"),
        (
            "llada",
            {"algorithm": "d3llm", "early_stop": 1, "end_token_id": -1},
            "end_token_id=-1 must be an integer from 0",
        ),
        (
            "sdar",
            {"head_quantization": "fp8"},
            "head_quantization='fp8' needs a GPU of compute capability 9.0; this is 'cpu'",
        ),
        ("sdar", {"head_quantization": "int8"}, r"head_quantization\n.*Input should be 'fp8'"),
        ("sdar", {"steps": 300, "steps_limit": 256}, "steps=300 .* must be at most steps_limit=256"),
        ("sdar", {"max_post_steps": 20, "post_steps_limit": 8}, "max_post_steps=20 .* must be at most post_"),
    ],
)
def test_a_default_has_the_bounds_of_a_request(model: str, given: dict[str, Any], message: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match=message):
        EngineArgs(
            model=str(GOLDEN / model), max_model_len=256, diffusion_config=given
        ).create_engine_config()


def test_fp8_weights_are_refused_on_a_cpu() -> None:
    """There is no kernel for them: upstream fails while it loads the weights."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion import bundled_path

    with pytest.raises(ValueError, match="does not support: quantization='fp8'"):
        EngineArgs(model=bundled_path(), quantization="fp8").create_engine_config()


@pytest.mark.parametrize("family", ["SDAR-MoE", "LLaDA2", "LLaDA2.2", "LLaDA-MoE"])
def test_adapters_of_models_of_experts_are_refused_on_a_cpu(family: str, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    folder = PUBLISHED[family].write(tmp_path)
    with pytest.raises(ValueError, match="does not support: enable_lora with models of experts"):
        EngineArgs(model=str(folder), enable_lora=True, lora_target_modules=["o_proj"]).create_engine_config()


@pytest.mark.parametrize("name", ["enable_prefix_caching", "enable_chunked_prefill"])
def test_parts_of_prompts_are_refused_where_a_step_computes_all(name: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    for family, both_ways in (("llada", True), ("dream", True), ("sdar", False)):
        args: dict[str, Any] = {"model": str(GOLDEN / family), "max_model_len": 256}
        if both_ways:
            asked: dict[str, Any] = {name: True}
            with pytest.raises(ValueError, match=f"{name}=True has no effect on a model in which every"):
                EngineArgs(**args, **asked).create_engine_config()
        for given in ({}, {name: False}, *([] if both_ways else [{name: True}])):
            config = EngineArgs(**args, **given).create_engine_config()  # type: ignore[arg-type]
            assert config.scheduler_config.max_num_batched_tokens >= 256
            if both_ways:
                assert not config.cache_config.enable_prefix_caching


def test_a_family_cannot_take_the_place_of_another() -> None:
    from vllm.v1.diffusion.plugins import family_of_architectures, register_family

    sdar = families.FAMILIES[0]
    with pytest.raises(ValueError, match="must not hold SDARForCausalLM, served as SDAR"):
        register_family(replace(sdar, name="Mine", block_length=8))
    assert family_of_architectures(sdar.architectures) is sdar
    mine = replace(sdar, name="Mine", architectures=("MineForCausalLM",))
    try:
        register_family(mine)
        register_family(mine)  # Once in every process, and a process may be asked twice.
        with pytest.raises(ValueError, match="must not hold MineForCausalLM, served as Mine"):
            register_family(replace(mine, name="Another"))
    finally:
        families._registered.remove(mine)


def test_replicas_of_a_mixture_on_a_cpu() -> None:
    """Upstream's engines would end with the first request. A dense model's are apart."""
    from vllm.engine.arg_utils import EngineArgs

    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 256, "data_parallel_size": 2}
    EngineArgs(model=str(GOLDEN / "sdar"), **common).create_engine_config()
    with pytest.raises(ValueError, match="data_parallel_size=2 is not supported on a CPU with a mixture"):
        EngineArgs(model=str(GOLDEN / "llada2"), **common).create_engine_config()
