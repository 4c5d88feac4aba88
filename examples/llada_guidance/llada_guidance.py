# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance for LLaDA: two forward passes a step.

The published decoder (ML-GSAI/LLaDA, ``generate.py``) also runs the sequence with its
prompt masked and moves the logits away from what comes out: ``u + (s + 1) * (c - u)``, ``c``
with the prompt, ``u`` without it, ``s`` the request's ``cfg_scale``.

The loop runs the model twice on the rows of one step and keeps both results side by
side, with the scale in one more column, so that nothing has to be remembered between
``forward`` and ``compute_logits``.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.plugins import (
    FullDiffusionLoop,
    FullDiffusionModelState,
    resolve_decoding,
    resolve_diffusion_config,
)
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

SCALE = "cfg_scale"


class GuidedLoop(FullDiffusionLoop):
    """Full diffusion, with guidance for the requests whose ``extra_args`` ask for it."""

    own_parameters = frozenset({SCALE})
    dtype: torch.dtype
    """Of the model's hidden states."""

    def configure(self, vllm_config: VllmConfig) -> None:
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if stages > 1:
            raise ValueError(
                f"pipeline_parallel_size={stages} is not supported with guidance: "
                "a stage hands on the hidden states of one pass, and guidance makes two"
            )
        super().configure(vllm_config)

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        super().validate_params(params, vllm_config)
        scale = (params.extra_args or {}).get(SCALE, 0.0)
        if not isinstance(scale, int | float) or not 0 <= scale < float("inf"):
            raise ValueError(f"{SCALE}={scale!r} must be a number of at least 0")
        cache = resolve_decoding(params, resolve_diffusion_config(vllm_config)).cache
        if scale > 0 and cache != "none":
            raise ValueError(
                f"diffusion_cache={cache!r} keeps the keys and values of one pass, and {SCALE}={scale} "
                "makes two: use 'none'"
            )

    def model_state_cls(self, model: nn.Module) -> type[FullDiffusionModelState]:
        return GuidedState

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        unconditional_ids = inputs.pop("unconditional_ids", None)
        if unconditional_ids is None:
            return super().forward(model, inputs)
        scale = inputs.pop("scale")
        # Each pass writes the step's keys and values; those of the last one stay.
        without = super().forward(model, {**inputs, "input_ids": unconditional_ids})
        given = super().forward(model, inputs)
        self.dtype = given.dtype
        return torch.cat((given.float(), without.float(), scale[:, None]), dim=1)

    def compute_logits(self, model: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape[1] % 2 == 0:  # No request of this step is guided.
            return super().compute_logits(model, hidden_states)
        hidden, scale = hidden_states[:, :-1].to(self.dtype), hidden_states[:, -1:]
        given, without = (
            super(GuidedLoop, self).compute_logits(model, h).float() for h in hidden.chunk(2, 1)
        )
        # A request without guidance keeps its logits to the last bit.
        return torch.where(scale > 0, without + (scale + 1) * (given - without), given)


class GuidedState(FullDiffusionModelState):
    """Also masks the prompts, where a running request is guided."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scales = np.zeros(self.max_num_reqs, dtype=np.float32)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self.scales[req_index] = ((params and params.extra_args) or {}).get(SCALE, 0.0)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        inputs = super().prepare_inputs(input_batch, req_states)
        if not self.scales[input_batch.idx_mapping_np].any():
            return inputs
        # Prompt lengths and scales are known on the host: nothing waits for the device.
        slots = np.repeat(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
        num_tokens = len(slots)
        prompt = async_tensor_h2d(req_states.prompt_len.np[slots], device=self.device)
        scale = async_tensor_h2d(self.scales[slots], device=self.device)
        ids, positions = input_batch.input_ids, input_batch.positions
        masked = ids.clone()
        masked[:num_tokens].masked_fill_(positions[:num_tokens] < prompt, self.canvases.mask_token_id)
        padded = torch.zeros(len(ids), device=self.device)
        padded[:num_tokens] = scale
        return {**inputs, "unconditional_ids": masked, "scale": padded}
