# SPDX-License-Identifier: Apache-2.0
"""A router's weights stay as a checkpoint stores them, where a GPU multiplies those into float32."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.models import complete_weights
from vllm.model_executor.models.router_weights import RouterWeights

NAME = "model.mlp.gate.weight"


class Network(nn.Module):
    """What a family's network is to the mixin."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        nn.Module.__init__(self)
        gate = GateLinear(64, 16, out_dtype=torch.float32, params_dtype=torch.float32)
        gate._router_gemm_cublas_capable = vllm_config.capable
        self.model = nn.ModuleDict({"mlp": nn.ModuleDict({"gate": gate})})

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters = dict(self.named_parameters())
        return {name for name, tensor in weights if parameters[name].data.copy_(tensor) is not None}


class Model(RouterWeights, Network):
    """A family's class."""


def made(
    capable: bool = True, load_format: str = "auto", dtype: torch.dtype = torch.bfloat16
) -> tuple[Any, Any]:
    """A model and its router."""
    config: Any = SimpleNamespace(
        capable=capable,
        load_config=SimpleNamespace(load_format=load_format),
        model_config=SimpleNamespace(dtype=dtype, word_embeddings_untied_by_checkpoint=False),
    )
    with set_current_vllm_config(VllmConfig()):
        model = Model(vllm_config=config)
    return model, model.get_submodule("model.mlp.gate")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank; and whether a checkpoint is whole is another test's."""
    monkeypatch.setattr(linear, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(linear, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(complete_weights, "check_weights", lambda model, seen: None)


@pytest.mark.parametrize(
    ("stored", "capable", "kept"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, True, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.bfloat16, False, torch.float32),
    ],
)
def test_the_type_is_the_checkpoints(stored: torch.dtype, capable: bool, kept: torch.dtype) -> None:
    model, gate = made(capable)
    weight = torch.randn(16, 64).to(stored)
    model.load_weights([(NAME, weight)])
    assert gate.weight.dtype == kept
    assert gate.allow_cublas_router_gemm == (kept == torch.bfloat16)
    assert torch.equal(gate.weight.double(), weight.double()), "no weight was rounded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_other_activations_keep_float32(dtype: torch.dtype, load_format: str) -> None:
    """Upstream would round them to the weight's type, and give scores in it."""
    model, gate = made(load_format=load_format, dtype=dtype)
    model.load_weights([(NAME, torch.randn(16, 64).bfloat16())])
    assert gate.weight.dtype == torch.float32 and not gate.allow_cublas_router_gemm


def test_a_reload_changes_no_type() -> None:
    """Graphs that were captured read the weight where it is."""
    model, gate = made()
    model.load_weights([(NAME, torch.randn(16, 64))])
    where = gate.weight.data_ptr()
    model.load_weights([(NAME, torch.ones(16, 64, dtype=torch.bfloat16))])
    assert gate.weight.dtype == torch.float32 and gate.weight.data_ptr() == where
    assert gate.weight.unique().tolist() == [1.0]


def test_dummy_weights() -> None:
    """They are of the model's type, as those of most checkpoints are."""
    assert made(load_format="dummy")[1].weight.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("rows", [1, 32, 512])
def test_scores_on_cuda(rows: int) -> None:
    """Those of a product in float64, as exact as float32 adds up."""
    with set_current_vllm_config(VllmConfig()), torch.device("cuda"):
        gate: Any = GateLinear(2048, 256, out_dtype=torch.float32, params_dtype=torch.bfloat16)
        gate.weight.data.normal_()
        x = torch.randn(rows, 2048, dtype=torch.bfloat16)
        scores = gate(x)[0]
    assert gate.allow_cublas_router_gemm and scores.dtype == torch.float32
    wanted = x.double() @ gate.weight.double().T
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-3)
