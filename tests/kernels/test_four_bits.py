# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 bits on a CPU: refused by name where upstream's objects have no operator for them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from vllm.model_executor.kernels.linear.mixed_precision import MPLinearLayerConfig
from vllm.model_executor.kernels.linear.mixed_precision import cpu as kernels
from vllm.scalar_type import scalar_types

LAYER = MPLinearLayerConfig(
    full_weight_shape=(128, 64),
    partition_weight_shape=(128, 64),
    weight_type=scalar_types.uint4b8,
    act_type=torch.bfloat16,
    group_size=128,
    zero_points=False,
)


def test_a_layer_is_taken_where_its_operator_is() -> None:
    importlib.import_module("vllm._custom_ops")
    there = hasattr(torch.ops._C, "cpu_gemm_wna16")
    assert kernels.CPUWNA16LinearKernel.can_implement(LAYER)[0] == there


def test_a_cpu_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ops", SimpleNamespace(_C=SimpleNamespace()))
    takes, why = kernels.CPUWNA16LinearKernel.can_implement(LAYER)
    assert not takes and why is not None and "AVX-512" in why
