# SPDX-License-Identifier: Apache-2.0
"""The worker's side of bidirectional diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.config import family_of
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.model_state import DiffusionModelState, padded
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup


class FullDenoisingSampler(DenoisingSampler):
    """The denoising sampler where nothing is computed for good."""

    shifted: bool
    """Whether row i of the logits predicts token i + 1."""

    def _takes_first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        # Inside a cached block the row before it is not computed any more, so the step
        # that does compute it unmasks the token it predicts, and no other (Fast-dLLM).
        if not self.shifted:
            return None
        canvases, slots = self.canvases, step.slots
        # A template may have given that token: then the step unmasks what its policy chooses.
        return canvases.cached.gpu[slots] & (canvases.step[slots] == 0) & canvases.masked[slots, 0]

    def _rewritable(self, slots: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        if not self.shifted:
            return first
        return first.clamp(min=1).where(self.canvases.cached.gpu[slots], first)

    def _computed(
        self,
        input_batch: InputBatch,
        slots: torch.Tensor,
        window_end: torch.Tensor,
        known: torch.Tensor,
        start: torch.Tensor,
        finished: torch.Tensor,
    ) -> torch.Tensor:
        slots_np, rows = input_batch.idx_mapping_np, input_batch.cu_num_logits_np[: len(slots) + 1]
        cached = self.canvases.cached.np[slots_np]
        if not cached.any():
            return torch.zeros_like(start)
        begins = ~finished
        if not cached.all():
            begins &= self.canvases.cached.gpu[slots]
        if self.canvases.flags.unforeseen[slots_np].any() or not np.diff(rows).all():
            begins &= self.canvases.covers(self.req_states, slots, window_end)
        return torch.where(begins, start, 0)


class FullDiffusionModelState(DiffusionModelState):
    """Feeds prompt, unmasked tokens, canvas and masks, all seeing each other.

    A window's queries attend to the keys and values of the whole canvas. Those
    outside the window are what the block's first step left in the cache.
    """

    sampler_cls = FullDenoisingSampler
    aligned = False

    def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
        """Puts the denoising sampler in the place of upstream's."""
        denoising, _ = super().custom_sampler(sampler)
        denoising.shifted = family_of(self.vllm_config).shifted
        return denoising, None

    def canvas_end(self, new_req_data: NewRequestData) -> int:
        """The prompt's length and ``max_tokens``."""
        params = new_req_data.sampling_params
        assert params is not None and params.max_tokens is not None
        return min(new_req_data.prompt_len + params.max_tokens, self.max_model_len)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Also points the rows of logits at the block, inside its window."""
        inputs = super().prepare_inputs(input_batch, req_states)
        counts = np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
        if counts.any():
            request = async_tensor_h2d(
                np.repeat(np.arange(input_batch.num_reqs), counts),
                dtype=torch.int64,
                device=self.device,
            )
            slot = input_batch.expanded_idx_mapping
            first = input_batch.query_start_loc[request]
            computed = req_states.num_computed_tokens.gpu[slot]
            offset = self.canvases.start[slot] - computed + input_batch.expanded_local_pos
            if family_of(self.vllm_config).shifted:
                offset = (offset - 1).clamp(min=0)
            # Upstream's warm-up schedules windows that end before the canvas.
            input_batch.logits_indices = (first + offset).clamp_(max=input_batch.num_tokens - 1)
        return inputs

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        model_specific_attn_metadata: Any = None,
    ) -> dict[str, Any]:
        """Attention metadata with one bidirectional sequence a request."""
        assert ubatch_idx == 0
        used = input_batch.num_reqs
        window_end = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        canvas_end = self.canvases.end.np[input_batch.idx_mapping_np]
        denoises = np.diff(input_batch.cu_num_logits_np[: used + 1]) > 0
        # A dummy batch has rows of logits too, but no canvas.
        denoises &= input_batch.num_draft_tokens > 0
        lengths = np.where(denoises, canvas_end, window_end).astype(np.int32)
        if for_capture or cudagraph_mode == CUDAGraphMode.FULL:
            num_reqs, num_tokens = input_batch.num_reqs_after_padding, input_batch.num_tokens_after_padding
            max_query_len, max_seq_len = num_tokens, self.max_model_len
            seq_lens = self.graph_sequences.request_seq_lens
            async_tensor_h2d(padded(lengths, len(seq_lens)), out=seq_lens)
        else:
            num_reqs, num_tokens = used, input_batch.num_tokens
            max_query_len, max_seq_len = int(input_batch.num_scheduled_tokens.max()), int(lengths.max())
            seq_lens = async_tensor_h2d(lengths, device=self.device)
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=num_reqs,
            num_tokens=num_tokens,
            query_start_loc_gpu=input_batch.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(input_batch.query_start_loc_np[: num_reqs + 1]),
            max_query_len=max_query_len,
            seq_lens=seq_lens,
            max_seq_len=max_seq_len,
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            causal=False,
            seq_lens_cpu_upper_bound=padded(lengths, num_reqs),
            positions=input_batch.positions,
            for_cudagraph_capture=for_capture,
        )
