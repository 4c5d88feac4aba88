# SPDX-License-Identifier: Apache-2.0
"""The worker's side of a diffusion request: inputs and attention of each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn as nn

from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.config import family_of, resolve_diffusion_config
from vllm.v1.diffusion.grammar.states import GrammarStates
from vllm.v1.diffusion.layers.apply import apply_kernels
from vllm.v1.diffusion.layers.compiled import compile_for_this_cpu
from vllm.v1.diffusion.layers.prefill_attention import StepAttention
from vllm.v1.diffusion.layers.vocabulary_shares import share_vocabulary
from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.diffusion.modes import mode_of
from vllm.v1.diffusion.request.blocks import placed
from vllm.v1.diffusion.request.likelihood import scoring
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.diffusion.sampling.rows import RowLayout
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.pipeline_relay import CanvasRelay
from vllm.v1.diffusion.worker.reloads import Reloads
from vllm.v1.diffusion.worker.row_adapters import RowAdapters
from vllm.v1.diffusion.worker.sequences import Attention, GraphSequences, padded
from vllm.v1.generation_loop.interface import GenerationLoop
from vllm.v1.generation_loop.registry import get_generation_loop
from vllm.v1.generation_loop.stages import is_last_stage
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup


class DiffusionModelState(DefaultModelState):
    """Feeds canvases to the model; the loop's mode says which rows and sequences they are."""

    num_new_sampled_tokens_per_step = 0

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        if current_platform.is_cpu():
            compile_for_this_cpu()
        self.diffusion_config = resolve_diffusion_config(vllm_config)
        self.mode = mode = mode_of(vllm_config)
        served = self.diffusion_config.block_length
        mask_token_id = self.diffusion_config.mask_token_id
        mask_token_id = -1 if mask_token_id is None else mask_token_id
        assert served is not None
        # A request's step may be in flight when its next one is planned; not so in a pipeline.
        pipelined = vllm_config.parallel_config.pipeline_parallel_size > 1
        self._denoises = is_last_stage()
        self._slots: dict[str, int] = {}
        self._sampler: DenoisingSampler | None = None
        self.overlaps = vllm_config.max_concurrent_batches > 1 and not pipelined
        self.canvases = CanvasStates(
            self.max_num_reqs,
            served * mode.blocks.open_blocks,
            mask_token_id,
            device,
            mode.blocks,
            mode.noise.load()(mask_token_id),
        )
        self.rows: RowLayout = mode.rows.load()(self.canvases, family_of(vllm_config))
        self.attention: Attention = mode.attention.load()(vllm_config, self.canvases, device)
        self._attention_begun = False
        self.canvases.edit_ids = self.diffusion_config.edit_ids
        self.grammars = GrammarStates(vllm_config, self.canvases)
        self.relay = CanvasRelay(self.canvases, self._denoises) if pipelined else None
        self.adapters = RowAdapters(model, self.max_num_reqs) if vllm_config.lora_config else None
        self.reloads = Reloads(model, vllm_config.model_config)
        self.attention.prefill_attention = apply_kernels(
            vllm_config,
            model,
            device,
            self.attention.block_causal,
            eight_bit_head=self.diffusion_config.head_quantization is not None,
        )

    def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
        """Puts the denoising sampler in the place of upstream's."""
        family = family_of(self.vllm_config)
        self._sampler = denoising = DenoisingSampler(
            sampler,
            self.canvases,
            self.grammars,
            self.rows,
            overlaps=self.overlaps,
            tempered_confidence=family.tempered_confidence,
            keeps_filters=family.keeps_filters,
            most_rows=min(
                self.max_num_reqs * self.canvases.width * self.rows.rows_per_position, self.max_num_tokens
            ),
            shares=share_vocabulary(self.model) if self._may_share_logits() else None,
        )
        denoising.profiled = not current_platform.is_cpu()  # Whose memory is not profiled.
        self.rows.bind(denoising, self.model, self.vllm_config)
        return denoising, None

    def _may_share_logits(self) -> bool:
        """Whether nothing but the sampler reads the head's output, and the head is the model's own."""
        guarded: Any = get_generation_loop(self.vllm_config)
        loop = type(guarded.loop)
        own = (GenerationLoop.forward, GenerationLoop.compute_logits)
        sharded = self.vllm_config.parallel_config.enable_batch_sharded_sampling
        return (
            (loop.forward, loop.compute_logits) == own
            and self.vllm_config.lora_config is None
            and not sharded
            and not self.rows.changes_logits
        )

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Starts the request's canvas; see upstream."""
        super().add_request(req_index, new_req_data)
        params, prompt_len = new_req_data.sampling_params, new_req_data.prompt_len
        assert params is not None and params.max_tokens is not None
        targets: Targets | None = getattr(new_req_data, "targets", None)
        decoding, grid = placed(
            scoring(targets, self.diffusion_config)
            if targets
            else resolve_decoding(params, self.diffusion_config),
            self.mode.blocks,
            prompt_len,
            params.max_tokens,
            self.max_model_len,
        )
        self.canvases.add(req_index, decoding, grid, prompt_len)
        self._slots[new_req_data.req_id] = req_index
        self.rows.add(req_index, decoding, prompt_len)
        if self._denoises:
            self.grammars.add(req_index, new_req_data, grid)
        if self.relay is not None:
            self.relay.start(req_index)
        if self.adapters is not None:
            self.adapters.add(req_index, new_req_data.lora_request)

    def remove_request(self, req_id: str) -> None:
        """Gives back whatever the request's slot holds; see upstream."""
        super().remove_request(req_id)
        slot = self._slots.pop(req_id, None)
        if slot is None:
            return
        for held in (self.canvases, self.rows, self.grammars, self.relay, self.adapters, self._sampler):
            if held is not None:
                held.remove(slot)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Writes known tokens and canvases to ``input_batch.input_ids``."""
        self.reloads.check()
        self.canvases.apply_added(req_states)
        self.rows.begin_step(input_batch, req_states)
        if self.relay is not None:
            self.relay.begin_step(input_batch, req_states)
        num_tokens = input_batch.num_tokens
        ids, positions = input_batch.input_ids[:num_tokens], input_batch.positions[:num_tokens]
        unsure = self.overlaps and self.canvases.flags.unforeseen[input_batch.idx_mapping_np].any()
        if not unsure and self.rows.windows_are_canvases(input_batch):
            slots = input_batch.idx_mapping[: input_batch.num_reqs]
            ids.copy_(self.canvases.tokens.index_select(0, slots).view(-1))
        else:
            slots_np = np.repeat(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
            ids.copy_(self.canvases.input_ids(req_states, slots_np.astype(np.int64), positions))
        self.rows.point_logits(input_batch, req_states, unsure)
        if self.device.type == "cpu" and not len(input_batch.logits_indices):
            # A step that denoises nothing: upstream's product for small heads in bfloat16 divides by the
            # number of rows, which ends the process. Nobody reads this one.
            input_batch.logits_indices = input_batch.logits_indices.new_zeros(1)
        if self.adapters is not None:
            self.adapters.apply(input_batch, self.rows.row_requests(input_batch))
        return self.rows.inputs(input_batch)

    def postprocess_state(
        self,
        idx_mapping: torch.Tensor,
        num_sampled: torch.Tensor,
        num_computed_tokens: torch.Tensor | None = None,
    ) -> None:
        """Hands the canvases to the other stages of a pipeline; see upstream."""
        super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)
        if self.relay is not None:
            self.relay.end_step(idx_mapping)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Makes what captured graphs read; see upstream."""
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self._sampler is not None:
            self._sampler.profiled = False
        self._attention_begun = False
        self.attention.block_sizes = tuple(block_tables.block_sizes)
        self._block_tables = block_tables
        self.graph_sequences = GraphSequences(
            self.vllm_config.compilation_config.max_cudagraph_capture_size or 0,
            tuple(block_tables.input_block_tables),
            self.device,
        )

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
        """Attention metadata of the mode's sequences."""
        assert ubatch_idx == 0
        attention = self.attention
        if not self._attention_begun:
            attention.begin(attn_groups)
            self._attention_begun = True
        captured = for_capture or cudagraph_mode == CUDAGraphMode.FULL
        if self.rows.place(input_batch):
            # In place: upstream has made them, for rows that follow each other.
            self._block_tables.compute_slot_mappings(
                input_batch.idx_mapping,
                input_batch.query_start_loc,
                input_batch.positions,
                num_tokens_padded=input_batch.num_tokens_after_padding,
            )
        sequences = attention.sequences(input_batch, captured)
        if captured:
            num_tokens, max_seq_len = input_batch.num_tokens_after_padding, self.max_model_len
            count, max_query_len = attention.graph_shape(input_batch)
            staged = self.graph_sequences.fill(sequences, count, block_tables)
        else:
            num_tokens, max_seq_len = input_batch.num_tokens, int(sequences.seq_lens.max())
            count, max_query_len = len(sequences.seq_lens), int(np.diff(sequences.query_start_loc).max())
            staged = sequences.staged(input_batch, block_tables)
        attention.adjust(staged, input_batch)
        attn_metadata = build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=count,
            num_tokens=num_tokens,
            query_start_loc_gpu=staged.query_start_loc,
            query_start_loc_cpu=staged.query_start_loc_cpu,
            max_query_len=max_query_len,
            seq_lens=staged.seq_lens,
            max_seq_len=max_seq_len,
            block_tables=staged.block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            causal=attention.causal(sequences, count, captured),
            seq_lens_cpu_upper_bound=padded(sequences.seq_lens, count),
            positions=input_batch.positions,
            for_cudagraph_capture=for_capture,
        )
        if not captured:
            attention.finish(StepAttention(attn_metadata, attn_groups, block_tables), input_batch)
        return attn_metadata


class FullDiffusionModelState(DiffusionModelState):
    """The name that plug-ins derive from under ``FullDiffusionLoop``, whose mode it takes."""
