# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Int8 linear layers that are right on every x86-64 CPU.

Upstream has two libraries for them. oneDNN multiplies unsigned by signed numbers: it adds 128 to the
activations and takes the difference off afterwards. Where a CPU has no VNNI, two such products are added in
a 16-bit register that saturates: ``2 * 255 * 127`` does not fit, ``2 * 255 * 64`` does. oneDNN leaves it to
its caller to stay within that range (its developer guide, "Nuances of int8 Computations"). The other library
needs AMX. It computes in bfloat16 alone, packs 32 outputs at a time, and takes each token's own scale even if
the checkpoint has one for all tokens.
"""

from __future__ import annotations

from functools import cache

import torch

from vllm import _custom_ops as ops
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.platforms import CpuArchEnum, current_platform

__all__ = ["ExactInt8LinearKernel", "products_saturate"]

logger = init_logger(__name__)

_AMX_OUTPUTS = 32
"""The outputs that the library for AMX packs together."""
_SLICE = 1 << 18
"""Weights that are float32 at a time for each thread: 1 MiB, which a core's second-level cache holds."""


@cache
def products_saturate() -> bool:
    """Whether this machine's oneDNN gives wrong products for weights above 64.

    oneDNN itself is asked, by a product of equal numbers: what it does also depends on
    ``ONEDNN_MAX_CPU_ISA`` and on the instruction sets that its build knows.
    """
    rows, inputs, outputs = 2, 64, 32
    weight = torch.full((outputs, inputs), 127, dtype=torch.int8)
    scale = torch.ones(outputs, 1, dtype=torch.float32)  # oneDNN keeps its address, not the tensor.
    product = ops.create_onednn_scaled_mm(weight.t(), scale, torch.float32, True, False, 1)
    x = torch.full((rows, inputs), 127, dtype=torch.int8)
    found = torch.empty(rows, outputs, dtype=torch.float32)
    ops.onednn_scaled_mm(product, x, found, torch.ones(rows, 1, dtype=torch.float32), None, None, None)
    return bool((found != inputs * 127 * 127).any())


class ExactInt8LinearKernel(CPUInt8ScaledMMLinearKernel):
    """Upstream's kernel where it is right; elsewhere the same products by a way that is.

    Without VNNI the products are float32's, which are exact and summed in float32. Weights stay int8 in
    memory; a slice of them is float32 at a time. With AMX the layers that its library cannot do are oneDNN's.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """On x86-64."""
        if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
            return False, "requires an x86-64 CPU."
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Chooses a way and prepares the weight for it, int8 ``[outputs, inputs]``."""
        name = self.layer_param_names[0]
        weight = getattr(layer, name).data
        if products_saturate():
            logger.warning_once(
                "oneDNN has no VNNI on this CPU, or ONEDNN_MAX_CPU_ISA hides it: int8 layers are multiplied "
                "in float32."
            )
            self.process_weights_for_onednn(layer)  # Scales and zero points; the product is not kept.
            self.dnnl_handler = None  # type: ignore[assignment]
            setattr(layer, name, torch.nn.Parameter(weight, requires_grad=False))
            self.linear_method = self._apply_weights_float
        elif (
            torch.get_default_dtype() == torch.bfloat16
            and not self.config.is_static_input_scheme
            and len(weight) % _AMX_OUTPUTS == 0
        ):
            super().process_weights_after_loading(layer)
        else:
            self.process_weights_for_onednn(layer)
            self.linear_method = self._apply_weights_onednn

    def _apply_weights_float(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x [..., inputs]`` rounded to int8, times the weight; ``[..., outputs]`` in x's dtype."""
        weight, scale, input_scale, zero_point, _ = self._get_layer_params(layer)
        rounded, input_scale, zero_point = ops.onednn_scaled_int8_quant(
            x.reshape(-1, x.shape[-1]), input_scale, zero_point, self.config.input_symmetric
        )
        activations = rounded.float()
        if zero_point is not None:
            activations -= zero_point
        outputs, inputs = weight.shape
        step = max(_SLICE * torch.get_num_threads() // inputs, 16)
        out = torch.empty(len(rounded), outputs, dtype=torch.float32)
        for start in range(0, outputs, step):
            part = weight[start : start + step].float()
            torch.mm(activations, part.t(), out=out[:, start : start + step])
        out *= input_scale * scale.flatten()
        if bias is not None:
            out += bias
        return out.to(x.dtype).view(*x.shape[:-1], outputs)
