"""The CPU side: the kernels that are replaced, and what attention accepts."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.upstream_contract.overlay_source import load

pytest.importorskip("vllm._diffusion_C", reason="the kernels are not built")
runner_kernels = importlib.import_module("vllm.v1.worker.cpu.runner_kernels")


@pytest.mark.parametrize("name", sorted(runner_kernels.KERNELS))
def test_a_kernel_takes_the_arguments_of_ours(name: str) -> None:
    module, kernel = name.rsplit(".", 1)
    function = getattr(importlib.import_module(module), kernel)
    function = inspect.unwrap(getattr(function, "_fallback", function))
    theirs = tuple(inspect.signature(getattr(function, "fn", function)).parameters)
    options = ("num_warps",)
    ours = tuple(n for n in runner_kernels.parameters(runner_kernels.KERNELS[name]) if n not in options)
    assert theirs == ours


def test_register_kernels_takes_a_table() -> None:
    function = load("vllm.triton_utils.dispatcher:register_kernels")
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty
    ]
    assert len(required) == 1


def test_head_sizes_of_the_bundled_models() -> None:
    backend = load("vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend")
    assert {32, 64, 128} <= set(backend.get_supported_head_sizes())


def test_attention_metadata_has_causality_and_lengths() -> None:
    metadata = load("vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata")
    assert {"causal", "seq_lens", "query_start_loc", "slot_mapping", "block_table"} <= set(
        metadata.__dataclass_fields__
    )


def test_the_cpu_has_its_runner_and_its_worker() -> None:
    assert issubclass(
        load("vllm.v1.worker.cpu.model_runner:CPUModelRunner"),
        load("vllm.v1.worker.gpu.model_runner:GPUModelRunner"),
    )
    assert "use_v2_model_runner" in inspect.getsource(load("vllm.v1.worker.cpu_worker:CPUWorker"))


def test_the_shared_memory_shim_is_imported_by_name() -> None:
    """runner_kernels.register imports it first, since others copy what it replaces."""
    importlib.import_module("vllm.v1.worker.cpu.shm")
