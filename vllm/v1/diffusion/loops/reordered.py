# SPDX-License-Identifier: Apache-2.0
"""The generation loop of causal models that denoise a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.loops.cuda_graphs import configure_graphs
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.engine_settings import check_budget, configure_cpu, fit_warm_up
from vllm.v1.diffusion.loops.settings import Settings, one_step_at_a_time, refuse_pipeline
from vllm.v1.diffusion.modes import REORDERED
from vllm.v1.diffusion.request.fields import ParameterError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.generation_loop.interface import GenerationLoop

_OF_BLOCKS = ("max_steps", "exit_threshold", "eos_early_stop")
"""Parameters that end a block, which a window is not."""


class ReorderedDiffusionLoop(DiffusionLoop):
    """Denoises a window under causal attention, unmasked tokens before masks (WeDLM)."""

    mode = REORDERED


class ReorderedSettings(Settings):
    """A window of known tokens and open positions, one step of a request at a time."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        one_step_at_a_time(vllm_config, "reordered diffusion")
        refuse_pipeline(
            vllm_config,
            "reordered diffusion",
            "the first stage does not know which positions the last one has unmasked",
        )
        check_budget(vllm_config, 2 * served)
        configure_cpu(vllm_config)
        configure_graphs(vllm_config, served)
        fit_warm_up(vllm_config, served)

    @override
    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        extra = params.extra_args or {}
        for name in (f"diffusion_{name}" for name in _OF_BLOCKS):
            if extra.get(name):
                raise ParameterError(
                    f"{name}={extra[name]!r} has no effect on this model, which has no blocks: its window "
                    "slides on from token to token.",
                    parameter=name,
                    value=extra[name],
                )
        if params.structured_outputs is not None:
            raise ParameterError(
                "structured_outputs (response_format, tool_choice) are not supported by this model, whose "
                "window slides on from token to token.",
                parameter="structured_outputs",
                value=None,
            )
