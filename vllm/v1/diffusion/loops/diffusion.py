# SPDX-License-Identifier: Apache-2.0
"""The generation loop of diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from vllm.sampling_params import SamplingParams
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.frontend.admission import admit_reading, check_policy, check_sampling_params
from vllm.v1.diffusion.frontend.http_fields import check_request
from vllm.v1.diffusion.loops.engine_settings import check_defaults, check_mode, refuse_unsupported
from vllm.v1.diffusion.modes import Mode
from vllm.v1.diffusion.request.candidates import check_candidates
from vllm.v1.diffusion.request.likelihood import check_likelihood, check_score_from
from vllm.v1.diffusion.request.params import check_extra_args
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.diffusion.request.template import admit_template, check_room
from vllm.v1.generation_loop.grace import DEFAULT_SECONDS
from vllm.v1.generation_loop.interface import GenerationLoop

if TYPE_CHECKING:
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
    from vllm.v1.diffusion.loops.settings import Settings
    from vllm.v1.worker.gpu.model_states.interface import ModelState


class DiffusionLoop(GenerationLoop):
    """Denoises block after block, as its mode says; a subclass names the mode."""

    mode: ClassVar[Mode]

    reads_next_token: ClassVar[bool] = False

    own_parameters: ClassVar[frozenset[str]] = frozenset()
    """Keys of ``SamplingParams.extra_args`` that a subclass reads, without ``diffusion_``."""

    @override
    def configure(self, vllm_config: VllmConfig) -> None:
        # Not at the top: the workers import loops too, and need none of the server's modules.
        from vllm.v1.diffusion.frontend.decisions import offer_decisions

        config = resolve_diffusion_config(vllm_config)
        vllm_config.diffusion_config = config
        assert config.block_length is not None
        refuse_unsupported(vllm_config)
        if vllm_config.shutdown_timeout == 0:  # Upstream's default, which ends requests at once.
            vllm_config.shutdown_timeout = DEFAULT_SECONDS
        check_defaults(vllm_config)
        settings = self._settings()
        settings.configure(vllm_config, self, config.block_length)
        offer_decisions(vllm_config)
        settings.check_params(SamplingParams(max_tokens=1), vllm_config)
        check_mode(resolve_decoding(None, config), self.mode)

    @override
    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        check_sampling_params(params, vllm_config)
        config = resolve_diffusion_config(vllm_config)
        check_extra_args(params.extra_args, self.own_parameters, config)
        resolve_decoding(params, config)
        check_likelihood(params, self.mode, config, vllm_config.model_config.logprobs_mode)
        admit_template(params, vllm_config, grows=self.mode.blocks.elastic)
        decoding = resolve_decoding(params, config)
        check_policy(decoding, vllm_config)
        check_mode(decoding, self.mode)
        admit_reading(params, decoding.block_length)
        check_candidates(decoding, params.max_tokens or vllm_config.model_config.max_model_len, config)
        self._settings().check_params(params, vllm_config)

    @override
    def validate_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        check_score_from(params, prompt_len)
        check_room(params, prompt_len, vllm_config.model_config.max_model_len)
        self._settings().check_prompt(prompt_len, params, vllm_config)

    @override
    def validate_request(self, request: OpenAIBaseModel, vllm_config: VllmConfig, server: Any = None) -> None:
        check_request(request, vllm_config, server)

    @override
    def scheduler_cls(self, vllm_config: VllmConfig) -> str:
        return "vllm.v1.diffusion.core.scheduler.DiffusionScheduler"

    @override
    def model_state_cls(self, model: nn.Module) -> type[ModelState]:
        from vllm.v1.diffusion.worker.model_state import DiffusionModelState

        return DiffusionModelState

    def _settings(self) -> Settings:
        settings: Settings = self.mode.settings.load()()
        return settings
