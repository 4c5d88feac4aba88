"""The attributes that the overlay reads from upstream's objects exist."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from tests.upstream_contract.overlay_source import attributes, calls, load, uses

# What the overlay calls a thing, in which modules -> the thing's class.
OBJECTS = {
    ("vllm_config", "vllm"): "vllm.config:VllmConfig",
    ("cache_config", "vllm"): "vllm.config:CacheConfig",
    ("model_config", "vllm"): "vllm.config:ModelConfig",
    ("scheduler_config", "vllm"): "vllm.config:SchedulerConfig",
    ("compilation", "vllm.v1.diffusion.loops.cuda_graphs"): "vllm.config:CompilationConfig",
    ("attention", "vllm.v1.diffusion.loops.cuda_graphs"): "vllm.config:AttentionConfig",
    ("core", "vllm.v1.generation_loop"): "vllm.v1.engine.core:EngineCore",
    ("core_process", "vllm.v1.generation_loop.grace"): "vllm.v1.engine.core:EngineCoreProc",
    ("info", "vllm.v1.diffusion.worker.reloads"): (
        "vllm.model_executor.model_loader.reload.types:LayerReloadingInfo"
    ),
    ("request", "vllm.v1.diffusion.core.scheduler"): "vllm.v1.request:Request",
    ("request", "vllm.v1.diffusion.core.scores"): "vllm.v1.request:Request",
    ("state", "vllm.v1.diffusion.message.report"): "vllm.v1.engine.output_processor:RequestState",
    ("scheduler_output", "vllm"): "vllm.v1.core.sched.output:SchedulerOutput",
    ("new_req_data", "vllm"): "vllm.v1.core.sched.output:NewRequestData",
    ("runner_output", "vllm"): "vllm.v1.outputs:ModelRunnerOutput",
    ("input_batch", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.input_batch:InputBatch",
    ("_block_tables", "vllm.v1.diffusion.worker.model_state"): ("vllm.v1.worker.gpu.block_table:BlockTables"),
    ("req_states", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.states:RequestState",
    ("sampling_states", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.sample.states:SamplingStates",
    (
        "data",
        "vllm.v1.diffusion.grammar.compiler",
    ): "vllm.v1.diffusion.message.request_data:DiffusionRequestData",
    ("structured", "vllm.v1.diffusion"): "vllm.v1.structured_output.request:StructuredOutputRequest",
    ("manager", "vllm.v1.diffusion"): "vllm.v1.structured_output:StructuredOutputManager",
    ("penalties_state", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.sample.penalties:PenaltiesState",
    ("bias_state", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.sample.logit_bias:LogitBiasState",
    ("token_ids_state", "vllm.v1.diffusion"): "vllm.v1.worker.gpu.sample.logprob:LogprobTokenIdsState",
    ("params", "vllm.v1.diffusion.frontend.admission"): "vllm.sampling_params:SamplingParams",
    ("params", "vllm.v1.diffusion.request.resolve"): "vllm.sampling_params:SamplingParams",
    (
        "request",
        "vllm.v1.diffusion.frontend.report",
    ): "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    ("output", "vllm.v1.diffusion.frontend.report"): "vllm.outputs:CompletionOutput",
    ("cache_manager", "vllm.v1.diffusion"): "vllm.v1.core.kv_cache_manager:KVCacheManager",
    ("upstream", "vllm.v1.diffusion.layers.skinny_fp8"): (
        "vllm.model_executor.kernels.linear.scaled_mm.cutlass:CutlassFP8ScaledMMLinearKernel"
    ),
    ("given", "vllm.v1.diffusion.layers.skinny_fp8"): (
        "vllm.model_executor.layers.fusion.quant_activation:QuantizedActivation"
    ),
    ("stats", "vllm.v1.diffusion.frontend.metrics"): "vllm.v1.spec_decode.metrics:SpecDecodingStats",
}


@pytest.mark.parametrize(("name", "below"), OBJECTS)
def test_upstreams_object_has_what_we_read(name: str, below: str) -> None:
    dotted = OBJECTS[name, below]
    has = attributes(load(dotted))
    missing = {attr: sorted(where) for attr, where in uses(name, below).items() if attr not in has}
    assert not missing, f"{dotted} no longer has: {missing}"


def test_the_table_is_in_use() -> None:
    unused = [key for key in OBJECTS if not uses(*key)]
    assert not unused, f"the overlay uses no {unused}: remove them from OBJECTS"


def test_attention_has_the_scales_of_an_eight_bit_cache() -> None:
    source = inspect.getsource(inspect.getmodule(load("vllm.model_executor.layers.attention:Attention")))  # type: ignore[arg-type]
    assert all(f'register_buffer("{name}"' in source for name in ("_k_scale", "_v_scale", "_q_scale"))
    assert "self.query_quant" in source and "self.query_quant(query, self._q_scale)" in source


@pytest.mark.parametrize(
    ("dotted", "given"),
    [
        (
            "vllm.v1.worker.gpu.sample.output:SamplerOutput",
            {
                *("sampled_token_ids", "logprobs_tensors", "num_nans", "num_sampled", "num_rejected"),
                "unmask_trace",
            },
        ),
        (
            "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsContext",
            {
                *("expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "expanded_local_pos"),
                *("input_ids", "pos", "seq_lens_upper_bound_np"),
            },
        ),
    ],
)
def test_what_we_construct_takes_what_we_give(dotted: str, given: set[str]) -> None:
    fields = {field.name: field for field in dataclasses.fields(load(dotted))}
    empty = dataclasses.MISSING
    required = {n for n, f in fields.items() if f.default is empty and f.default_factory is empty}
    assert required <= given <= set(fields)


FUNCTIONS = (
    "vllm.model_executor.kernels.linear.scaled_mm.cutlass:CutlassFP8ScaledMMLinearKernel.apply_scaled_mm",
    "vllm.model_executor.layers.attention.attention:get_attention_context",
    "vllm.model_executor.layers.attention.attention:unified_attention_with_output",
    "vllm.utils.torch_utils:async_tensor_h2d",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
    "vllm.v1.metrics.stats:RequestSpecDecodeMetrics.observe",
    "vllm.v1.outputs:LogprobsLists.slice_request",
    "vllm.v1.metrics.utils:create_metric_per_engine",
    "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
    "vllm.v1.worker.gpu.attn_utils:build_attn_metadata",
    "vllm.v1.worker.gpu.block_table:BlockTables.compute_slot_mappings",
    "vllm.v1.worker.gpu.sample.logprob:compute_token_logprobs",
    "vllm.v1.worker.gpu.sample.logprob:compute_topk_scores",
    "vllm.v1.worker.gpu.sample.penalties:apply_penalties",
    "vllm.v1.worker.gpu.sample.states:SamplingStates.apply_min_p",
)


@pytest.mark.parametrize("dotted", FUNCTIONS)
def test_upstreams_function_takes_our_arguments(dotted: str) -> None:
    module, _, path = dotted.partition(":")
    owner, _, name = path.rpartition(".")
    function = getattr(load(f"{module}:{owner}"), name) if owner else load(dotted)
    signature = inspect.signature(function)
    assert calls(name), f"the overlay does not call {name}: remove it from FUNCTIONS"
    for place, positional, keywords in calls(name):
        given = [None] * (positional + bool(owner))
        try:
            signature.bind(*given, **dict.fromkeys(keywords))
        except TypeError as error:
            pytest.fail(f"{place}: {dotted}{signature}: {error}")
