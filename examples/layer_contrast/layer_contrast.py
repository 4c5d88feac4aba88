# SPDX-License-Identifier: Apache-2.0
"""Contrasting layers (DoLa, arXiv 2309.03883) on any Llama- or Qwen-like model.

A model's later layers add the difference of its final prediction and the one that an early layer would make:
``log p_final - log p_early``, over the tokens with ``p_final >= alpha * max p_final``. Here the early layer
is fixed, and ``alpha`` is the request's ``contrast_alpha``. A request without it is decoded as usual.

    LLM(model, generation_loop="layer_contrast", additional_config={"contrast_layer": 8})
    SamplingParams(extra_args={"contrast_alpha": 0.1})
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.config.compilation import CompilationMode
from vllm.distributed.utils import get_pp_indices
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.generation_loop import GenerationLoop
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

ALPHA, LAYER = "contrast_alpha", "contrast_layer"


class LayerContrastLoop(GenerationLoop):
    """Autoregressive decoding from the contrast of two layers."""

    dtype: torch.dtype
    """Of the model's hidden states."""

    def configure(self, vllm_config: VllmConfig) -> None:
        compilation = vllm_config.compilation_config
        if compilation.mode not in (None, CompilationMode.NONE):
            raise ValueError("layer_contrast looks into the model, which compilation hides: leave it off")
        compilation.mode = CompilationMode.NONE
        layer = early_layer(vllm_config)
        stages = vllm_config.parallel_config.pipeline_parallel_size
        layers = vllm_config.model_config.hf_text_config.num_hidden_layers
        first, last = get_pp_indices(layers, stages - 1, stages)
        if not first <= layer < last - 1:
            raise ValueError(
                f"{LAYER}={layer} must be {first} to {last - 2}: a layer of the last pipeline "
                "stage, before its last one"
            )

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        alpha = (params.extra_args or {}).get(ALPHA, 0.0)
        if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise ValueError(f"{ALPHA}={alpha!r} must be a number from 0 (off) to 1")

    def model_state_cls(self, model: nn.Module) -> type[DefaultModelState]:
        return ContrastState

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        layer, alpha = inputs.pop(LAYER), inputs.pop(ALPHA)
        backbone: Any = model.model
        seen: list[torch.Tensor] = []

        def copy(module: nn.Module, arguments: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            seen.extend(tensor.clone() for tensor in output)  # The next layer's norm writes over them.

        hook = backbone.layers[layer].register_forward_hook(copy)
        try:
            final = super().forward(model, inputs)
        finally:
            hook.remove()
        if not isinstance(final, torch.Tensor):
            return final  # An earlier pipeline stage.
        hidden, residual = seen
        early, _ = backbone.norm(hidden, residual)
        self.dtype = final.dtype
        return torch.cat((final.float(), early.float(), alpha[:, None]), dim=1)

    def compute_logits(self, model: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        size = hidden_states.shape[1] // 2
        hidden, alpha = hidden_states[:, :-1].to(self.dtype), hidden_states[:, -1:]
        final = super().compute_logits(model, hidden[:, :size]).float()
        early = super().compute_logits(model, hidden[:, size:]).float()
        log_final, log_early = final.log_softmax(-1), early.log_softmax(-1)
        plausible = log_final >= log_final.amax(-1, keepdim=True) + alpha.log()
        contrast = (log_final - log_early).masked_fill(~plausible, -torch.inf)
        return torch.where(alpha > 0, contrast, final)


class ContrastState(DefaultModelState):
    """Upstream's books, and each request's ``alpha``."""

    def __init__(self, vllm_config: VllmConfig, *args: Any) -> None:
        super().__init__(vllm_config, *args)
        self.layer = early_layer(vllm_config)
        self.alphas = np.zeros(self.max_num_reqs, dtype=np.float32)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self.alphas[req_index] = ((params and params.extra_args) or {}).get(ALPHA, 0.0)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        slots = np.repeat(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
        alpha = torch.zeros(len(input_batch.positions), device=self.device)
        alpha[: len(slots)] = async_tensor_h2d(self.alphas[slots], device=self.device)
        return {**super().prepare_inputs(input_batch, req_states), LAYER: self.layer, ALPHA: alpha}


def early_layer(vllm_config: VllmConfig) -> int:
    """The layer to contrast with: ``additional_config["contrast_layer"]``, else the middle one."""
    layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    settings: Any = vllm_config.additional_config
    return int(settings.get(LAYER, layers // 2))
