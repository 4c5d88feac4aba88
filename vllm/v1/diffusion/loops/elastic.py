# SPDX-License-Identifier: Apache-2.0
"""The generation loop of bidirectional models that insert and delete tokens of their answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.loops.cuda_graphs import refuse_graphs
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.settings import CanvasSettings, one_step_at_a_time, refuse_pipeline
from vllm.v1.diffusion.modes import ELASTIC
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.resolve import resolve_decoding

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.generation_loop.interface import GenerationLoop


class ElasticDiffusionLoop(DiffusionLoop):
    """Denoises an answer whose length the model decides (DreamOn)."""

    mode = ELASTIC


class ElasticSettings(CanvasSettings):
    """Prompt and canvas as a whole, one step of a request at a time."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        one_step_at_a_time(vllm_config, "elastic diffusion")
        refuse_pipeline(vllm_config, "elastic diffusion", "only the last stage knows how long an answer is")
        # Each row of a canvas is a sequence, and only the device knows how many keys it has.
        refuse_graphs(vllm_config, "elastic diffusion")
        cache = resolve_diffusion_config(vllm_config).cache
        if cache != "none":
            raise ValueError(
                f"diffusion_config: cache={cache!r} is not supported: tokens move in every step."
            )
        super().configure(vllm_config, loop, served)
        # Its requests ask for what is refused below.
        vllm_config.kernel_config.enable_jit_warmup = False

    @override
    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        super().check_params(params, vllm_config)
        config = resolve_diffusion_config(vllm_config)
        decoding = resolve_decoding(params, config)
        extra = params.extra_args or {}
        for name in ("max_steps", "exit_threshold", "eos_early_stop", "block_length"):
            if extra.get(f"diffusion_{name}"):
                raise _moving(f"diffusion_{name}", extra[f"diffusion_{name}"])
        if decoding.cache != "none":
            raise _moving("diffusion_cache", decoding.cache)
        for name, value in (
            ("structured_outputs", params.structured_outputs),
            ("logprobs", params.logprobs),
            ("bad_words", params.bad_words if decoding.vetoes else None),
        ):
            if value is not None:
                raise _moving(name, value)
        if "end_time" in get_policy(decoding.algorithm).numbers:
            raise ParameterError(
                f"diffusion_algorithm={decoding.algorithm!r} is not supported on this model: its timetable "
                f"is for an answer of one length. {config.algorithm!r} is the model's.",
                parameter="diffusion_algorithm",
                value=decoding.algorithm,
            )
        given = decoding.template or ()
        if config.expand_token_id in given:
            raise ParameterError(
                f"diffusion_infill_ids: holds the id that expands, {config.expand_token_id}: a hole is -1.",
                parameter="diffusion_infill_ids",
                value=list(given),
            )


def _moving(name: str, value: Any) -> ParameterError:
    return ParameterError(
        f"{name}={value!r} is not supported by this model, whose tokens move while it denoises.",
        parameter=name,
        value=value,
    )
