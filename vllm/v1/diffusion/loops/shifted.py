# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal models whose row i predicts token i + 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.diffusion.loops.block import BlockDiffusionLoop

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.model_states.interface import ModelState


class ShiftedBlockDiffusionLoop(BlockDiffusionLoop):
    """Denoises block after block, each from an autoregressive first token."""

    def configure(self, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.configure`."""
        scheduler_config = vllm_config.scheduler_config
        if scheduler_config.async_scheduling:
            raise ValueError(
                "async_scheduling=True is not supported with shifted block diffusion: what a "
                "step computes depends on the step before it."
            )
        scheduler_config.async_scheduling = False
        super().configure(vllm_config)

    def scheduler_cls(self, vllm_config: VllmConfig) -> str:
        """See :meth:`GenerationLoop.scheduler_cls`."""
        return "vllm.v1.diffusion.core.shifted_scheduler.ShiftedDiffusionScheduler"

    def model_state_cls(self, model: nn.Module) -> type[ModelState]:
        """See :meth:`GenerationLoop.model_state_cls`."""
        from vllm.v1.diffusion.worker.shifted_model_state import ShiftedModelState

        return ShiftedModelState
