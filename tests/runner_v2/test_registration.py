# SPDX-License-Identifier: Apache-2.0
"""Which kernels are replaced, and that none is forgotten."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.schema_check_mode import SchemaCheckMode

import vllm.v1.worker.gpu
from tests.runner_v2.batches import random_batch
from vllm.triton_utils import triton
from vllm.triton_utils.dispatcher import KernelOverride
from vllm.v1.worker.cpu import runner_kernels, runner_support

# Kernels under v1/worker/gpu/ that stay Triton's, and why no request reaches them on a CPU.
# check_runner_support refuses what the first six are for.
UNREACHABLE = {
    "spec_decode": "speculative decoding",
    "sample/watermark.py": "watermarking",
    "sample/batch_shard.py": "batch-sharded sampling",
    "cp_utils.py": "decode context parallelism",
    "pcp_manager.py": "prefill context parallelism",
    "model_states/mamba_hybrid.py": "models with Mamba layers",
    "model_states/recoverssm.py": "models with Mamba layers",
}


def launched(path: Path) -> set[str]:
    """Names launched as `name[grid](...)` in a file that also defines them as kernels."""
    tree = ast.parse(path.read_text())
    kernels = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }
    return kernels & {
        node.func.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
    }


def test_every_kernel_is_replaced_or_out_of_reach() -> None:
    """A new kernel of upstream's fails here, on a rebase, and not in a user's request."""
    root = Path(vllm.v1.worker.gpu.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not any(name == key or name.startswith(f"{key}/") for key in UNREACHABLE):
            module = name.removesuffix(".py").replace("/", ".")
            found |= {f"vllm.v1.worker.gpu.{module}.{kernel}" for kernel in launched(path)}
    assert found == set(runner_kernels.KERNELS)


@pytest.mark.parametrize("name", sorted(runner_kernels.KERNELS))
def test_a_launch_reaches_our_operator(name: Any) -> None:
    module, kernel = name.rsplit(".", 1)
    override = getattr(__import__(module, fromlist=["_"]), kernel)
    assert isinstance(override, KernelOverride)
    assert override._impl is runner_kernels.KERNELS[name]


def test_registering_again_does_nothing() -> None:
    from vllm.v1.worker.gpu import input_batch

    before = input_batch._post_update_kernel
    runner_kernels.register()
    assert input_batch._post_update_kernel is before


def test_another_releases_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu import input_batch

    monkeypatch.setattr(input_batch, "_post_update_kernel", lambda idx_mapping_ptr: None)
    name = "vllm.v1.worker.gpu.input_batch._post_update_kernel"
    with pytest.raises(RuntimeError, match="come from different releases"):
        runner_kernels._check_signature(name, runner_kernels.KERNELS[name])


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 1024, 1025])
def test_the_placeholder_rounds_up(n: int) -> None:
    assert triton.next_power_of_2(n) == 1 << max(n - 1, 0).bit_length()


def config(**changes: Any) -> Any:
    parallel = SimpleNamespace(
        decode_context_parallel_size=1,
        prefill_context_parallel_size=1,
        enable_batch_sharded_sampling=None,
    )
    model = SimpleNamespace(is_hybrid=False, is_attention_free=False, is_moe=False, quantization=None)
    made = SimpleNamespace(
        parallel_config=parallel,
        model_config=model,
        speculative_config=None,
        watermark_config=None,
        lora_config=None,
    )
    for name, value in changes.items():
        owner = next(o for o in (made, parallel, model) if hasattr(o, name))
        setattr(owner, name, value)
    return made


def test_a_plain_configuration_is_accepted() -> None:
    runner_support.check_runner_support(config())
    runner_support.check_runner_support(config(model_config=None))


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"watermark_config": object()}, "watermarking"),
        ({"is_hybrid": True}, "models with Mamba layers"),
        ({"is_attention_free": True}, "models with Mamba layers"),
        ({"decode_context_parallel_size": 2}, "decode context parallelism"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism"),
        ({"enable_batch_sharded_sampling": True}, "batch-sharded sampling"),
    ],
)
def test_what_only_triton_can_do_is_refused(change: Any, feature: Any) -> None:
    assert feature in UNREACHABLE.values()
    with pytest.raises(ValueError, match=feature):
        runner_support.check_runner_support(config(**change))


def test_adapters_are_refused_with_experts_only() -> None:
    runner_support.check_runner_support(config(lora_config=object()))
    runner_support.check_runner_support(config(is_moe=True))
    with pytest.raises(ValueError, match="enable_lora with models of experts"):
        runner_support.check_runner_support(config(lora_config=object(), is_moe=True))


def test_schemas_say_what_is_written() -> None:
    """What an operator writes is marked in its schema; the mode raises if it is not."""
    from vllm.v1.worker.gpu.input_batch import post_update
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature

    b = random_batch(0)
    ones = torch.ones(b.requests, dtype=torch.int32)
    with SchemaCheckMode():
        post_update(
            b.idx_mapping,
            b.num_computed,
            torch.zeros(b.slots, 1, dtype=torch.int64),
            torch.zeros(b.slots, 50, dtype=torch.int32),
            torch.full((b.requests, 1), 7),
            ones,
            ones,
            b.query_start_loc,
            b.all_token_ids,
            b.total_len,
        )
        apply_temperature(torch.ones(1, 4), torch.tensor([0]), torch.full((1,), 2.0))
