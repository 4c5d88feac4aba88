# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Int8 linear layers whose products are exact on every x86-64 CPU.

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
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import CpuArchEnum, current_platform

__all__ = ["ExactInt8LinearKernel", "halves", "products_saturate"]

logger = init_logger(__name__)

_AMX_OUTPUTS = 32
"""The outputs that the library for AMX packs together."""


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


def halves(weight: torch.Tensor) -> torch.Tensor:
    """Two matrices side by side whose sum is the given one, their entries from -64 to 64.

    Args:
        weight: Int8, ``[outputs, inputs]``.

    Returns:
        Int8, ``[outputs, 2 * inputs]``.
    """
    lower = weight >> 1
    return torch.cat((lower, weight - lower), dim=1)


class ExactInt8LinearKernel(CPUInt8ScaledMMLinearKernel):
    """Upstream's kernel, where it is exact; elsewhere the same products by a way that is.

    Without VNNI every weight is split in two halves, which are multiplied with the same activations. The
    weights take 2 bytes each, and the products twice the time. With AMX the layers that its library cannot
    do are oneDNN's.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """On x86-64."""
        if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
            return False, "requires an x86-64 CPU."
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Chooses the library and packs the weight for it, int8 ``[outputs, inputs]``."""
        outputs = getattr(layer, self.layer_param_names[0]).size(0)
        if (
            torch.get_default_dtype() == torch.bfloat16
            and not self.config.is_static_input_scheme
            and outputs % _AMX_OUTPUTS == 0
            and not products_saturate()  # AMX with oneDNN limited: its products are oneDNN's too, by torch.
        ):
            super().process_weights_after_loading(layer)
        else:
            self.linear_method = self._apply_weights_onednn
            self.process_weights_for_onednn(layer)

    def process_weights_for_onednn(self, layer: torch.nn.Module) -> None:
        """Splits the weight where products saturate, and goes on as upstream."""
        self._split = products_saturate()
        if self._split:
            logger.warning_once(
                "oneDNN has no VNNI on this CPU (or ONEDNN_MAX_CPU_ISA hides it): int8 weights are split in "
                "two halves, which keeps the results exact. They take 2 bytes each and twice the time."
            )
            name = self.layer_param_names[0]
            weight = halves(getattr(layer, name).data)
            replace_parameter(layer, name, torch.nn.Parameter(weight, requires_grad=False))
        super().process_weights_for_onednn(layer)

    def _apply_weights_onednn(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._split:
            x = torch.cat((x, x), dim=-1)  # Rounded alike: a token's scale is that of the same numbers.
        out: torch.Tensor = super()._apply_weights_onednn(layer, x, bias)
        return out
