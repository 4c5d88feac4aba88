# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Int8 linear layers with and without VNNI; oneDNN reads its limit once a process."""

import os
import subprocess
import sys

import pytest

from vllm.platforms import CpuArchEnum, current_platform

if (
    not current_platform.is_cpu()
    or current_platform.get_cpu_architecture() != CpuArchEnum.X86
):
    pytest.skip("x86-64 CPUs only", allow_module_level=True)

CHILD = """
import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear import init_int8_linear_kernel

for rows, inputs, outputs in ((1, 64, 64), (5, 127, 63), (37, 96, 48)):
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs, 1) * 0.01
    layer = torch.nn.Module()
    layer.logical_widths = [outputs]
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    layer.input_scale = layer.input_zero_point = layer.azp_adj = layer.bias = None
    kernel = init_int8_linear_kernel(True, False, True, "test")
    kernel.process_weights_after_loading(layer)
    x = torch.randn(rows, inputs)
    rounded, input_scale, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
    want = (rounded.double() @ weight.double().t()) * input_scale * scale.t().double()
    got = kernel.apply_weights(layer, x).double()
    assert (got - want).norm() < 1e-6 * want.norm()
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "ALL"])
def test_layers_match_float64(isa: str) -> None:
    subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
        check=True,
        timeout=300,
    )
