# SPDX-License-Identifier: Apache-2.0
"""What our networks rely on in upstream's layers and backbones."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest

from tests.upstream_contract.overlay_source import load


def source(dotted: str) -> str:
    """The source of a module or class, as ``ast.unparse`` writes it."""
    thing = load(dotted) if ":" in dotted else importlib.import_module(dotted)
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(thing))))


def test_experts_ask_their_router() -> None:
    """LLaDA2.2's is put in its place, unless a kernel routes by itself."""
    runner = source("vllm.model_executor.layers.fused_moe.runner.moe_runner:MoERunner")
    assert "self.router = router" in runner
    assert "self.routed_experts.quant_method.is_monolithic" in runner
    assert "topk_weights, topk_ids = self.router.select_experts(" in runner
    router = load("vllm.model_executor.layers.fused_moe.router.base_router:BaseRouter")
    assert list(inspect.signature(router._compute_routing).parameters) == [
        *("self", "hidden_states", "router_logits", "indices_type", "input_ids"),
    ]
    assert list(inspect.signature(router.__init__).parameters)[1:3] == ["top_k", "global_num_experts"]
    assert "FusedMoEFactory" in source("vllm.model_executor.models.bailing_moe:BailingMoE")


def test_a_head_gives_its_share_where_nothing_is_gathered() -> None:
    """The order of shares, padding at the end of each, and that only one method gathers them."""
    head = source("vllm.model_executor.layers.logits_processor:LogitsProcessor")
    assert head.count("self._gather_logits(") == 1
    assert "logits = logits[..., :self.org_vocab_size]" in head
    indices = load("vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices")
    assert "org_vocab_start_index" in {field.name for field in dataclasses.fields(indices)}
    assert isinstance(indices.num_org_elements, property)
    embedding = source("vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding")
    for name in ("tp_size", "num_embeddings", "org_vocab_size", "num_embeddings_per_partition"):
        assert f"self.{name} = " in embedding


def test_a_forward_knows_its_padding() -> None:
    context = load("vllm.forward_context:ForwardContext")
    assert "is_padding" in {field.name for field in dataclasses.fields(context)}
    runner = source("vllm.v1.worker.gpu.model_runner:GPUModelRunner")
    assert "is_padding=input_batch.is_padding" in runner
    assert "is_padding=" in source("vllm.v1.worker.gpu.cudagraph_utils")


def test_mistral_grows_queries_as_the_configuration_says() -> None:
    attention = source("vllm.model_executor.models.mistral:MistralAttention")
    assert "getattr(config, 'llama_4_scaling', None)" in attention
    for key in ("original_max_position_embeddings", "beta"):
        assert f"llama_4_scaling_config['{key}']" in attention


def test_keys_can_be_kept_from_the_prefix_cache() -> None:
    allocate = load("vllm.v1.core.kv_cache_manager:KVCacheManager").allocate_slots
    assert inspect.signature(allocate).parameters["delay_cache_blocks"].default is False


def test_a_cpu_inspects_a_model_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture's first start; later ones read a file that this one writes."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    if not load("vllm.platforms:current_platform").is_cpu():
        pytest.skip("needs a CPU's build")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.delattr(registry, "subprocess")
    found = registry.ModelRegistry.models["SDARForCausalLM"].inspect_model_cls()
    assert found.architecture == "SDARForCausalLM"
    assert found.is_text_generation_model
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_experts_of_a_cpu_are_given_by_their_number_among_all() -> None:
    """``layers/local_experts.py`` gives them the rank's."""
    experts = load("vllm.model_executor.layers.fused_moe.experts.cpu_moe:CPUUnquantizedExperts")
    names = list(inspect.signature(experts.apply).parameters)
    assert names[5:10] == ["topk_weights", "topk_ids", "activation", "global_num_experts", "expert_map"]
    # Upstream reads it nowhere: ours would be too much once it does.
    assert inspect.getsource(experts.apply).count("expert_map") == 1
    methods = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
    assert "self.moe_kernel.fused_experts" in source(f"{methods}:UnquantizedFusedMoEMethod")


def test_grammars_are_compiled_by_an_executor() -> None:
    """``core/grammar_threads.py`` puts its own in the place of it."""
    manager = source("vllm.v1.structured_output:StructuredOutputManager")
    assert "self.executor = ThreadPoolExecutor(" in manager
    assert "self.executor.submit(" in manager
