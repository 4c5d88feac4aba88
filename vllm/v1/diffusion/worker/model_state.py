# SPDX-License-Identifier: Apache-2.0
"""The worker's side of block diffusion: inputs and attention of each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn as nn

from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.config import family_of, resolve_diffusion_config
from vllm.v1.diffusion.grammar.states import GrammarStates
from vllm.v1.diffusion.layers.fused_attention import fuse_attention
from vllm.v1.diffusion.layers.prefill_attention import PrefillAttention
from vllm.v1.diffusion.layers.skinny_layers import use_skinny_layers
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.block_sequences import BlockSequences, GraphSequences, make_room
from vllm.v1.diffusion.worker.pipeline_relay import CanvasRelay
from vllm.v1.diffusion.worker.row_adapters import RowAdapters
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
    """Feeds canvases to the model, with block-causal attention.

    Attention backends know causal and bidirectional sequences. A window is handed
    to them as one bidirectional sequence a block, each over the request's cache up
    to the end of that block, which is block-causal attention. Keys and values are
    written before they are read, so a block that is committed is seen by the block
    after it in the same step.
    """

    num_new_sampled_tokens_per_step = 0
    sampler_cls: type[DenoisingSampler] = DenoisingSampler
    aligned = True
    """Whether blocks begin at multiples of their length."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.diffusion_config = resolve_diffusion_config(vllm_config)
        width = self.diffusion_config.block_length
        mask_token_id = self.diffusion_config.mask_token_id
        assert width is not None and mask_token_id is not None
        # A request's step may be in flight when its next one is planned; not so in a pipeline.
        pipelined = vllm_config.parallel_config.pipeline_parallel_size > 1
        self._denoises = is_last_stage()
        self._slots: dict[str, int] = {}
        self._sampler: DenoisingSampler | None = None
        self.overlaps = vllm_config.max_concurrent_batches > 1 and not pipelined
        self.canvases = CanvasStates(self.max_num_reqs, width, mask_token_id, device, self.aligned)
        self.grammars = GrammarStates(vllm_config, self.canvases)
        self.relay = CanvasRelay(self.canvases, self._denoises) if pipelined else None
        self.adapters = RowAdapters(model, self.max_num_reqs) if vllm_config.lora_config else None
        fuse_attention(vllm_config, model)
        use_skinny_layers(vllm_config, model, device)

    def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
        """Puts the denoising sampler in the place of upstream's."""
        family = family_of(self.vllm_config)
        self._sampler = denoising = self.sampler_cls(
            sampler,
            self.canvases,
            self.grammars,
            overlaps=self.overlaps,
            tempered_confidence=family.tempered_confidence,
            keeps_filters=family.keeps_filters,
            most_rows=min(self.max_num_reqs * self.canvases.width, self.max_num_tokens),
        )
        return denoising, None

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Starts the request's canvas; see upstream."""
        super().add_request(req_index, new_req_data)
        decoding = resolve_decoding(new_req_data.sampling_params, self.diffusion_config)
        end = self.canvas_end(new_req_data)
        if end is not None:
            decoding = decoding.within(end - new_req_data.prompt_len)
        self.canvases.add(req_index, decoding, end, new_req_data.prompt_len)
        self._slots[new_req_data.req_id] = req_index
        if self._denoises:
            self.grammars.add(req_index, new_req_data, decoding.block_length)
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
        for held in (self.canvases, self.grammars, self.relay, self.adapters, self._sampler):
            if held is not None:
                held.remove(slot)

    def canvas_end(self, new_req_data: NewRequestData) -> int | None:
        """Where the request's canvas ends; None where blocks follow blocks."""
        return None

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Writes known tokens and canvases to ``input_batch.input_ids``."""
        self.canvases.apply_added(req_states)
        if self.relay is not None:
            self.relay.begin_step(input_batch, req_states)
        num_tokens = input_batch.num_tokens
        ids, positions = input_batch.input_ids[:num_tokens], input_batch.positions[:num_tokens]
        unsure = self.overlaps and self.canvases.flags.unforeseen[input_batch.idx_mapping_np].any()
        if self.aligned and not unsure and self._windows_are_canvases(input_batch):
            slots = input_batch.idx_mapping[: input_batch.num_reqs]
            ids.copy_(self.canvases.tokens.index_select(0, slots).view(-1))
        else:
            slots_np = np.repeat(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
            ids.copy_(self.canvases.input_ids(req_states, slots_np.astype(np.int64), positions))
        if unsure and self.aligned:
            self._find_open_blocks(input_batch)
        if self.adapters is not None:
            self.adapters.apply(input_batch)
        return {}

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

    def _windows_are_canvases(self, input_batch: InputBatch) -> bool:
        """Whether each request's window is its canvas, if the scheduler knew which block is open.

        So it is in most steps of a block: only its first one computes the block before, too.
        """
        width = self.canvases.width
        rows = input_batch.num_draft_tokens_per_req
        lengths = input_batch.num_scheduled_tokens
        return rows is not None and bool((rows == width).all() and (lengths == width).all())

    def _find_open_blocks(self, input_batch: InputBatch) -> None:
        """Points rows of logits at open blocks that a window reaches beyond.

        Such a window was planned before it was known which of its blocks is open.
        Upstream's rows are the window's last ones.
        """
        rows, slot = input_batch.logits_indices, input_batch.expanded_idx_mapping
        if len(rows):
            wanted = self.canvases.start[slot] + input_batch.expanded_local_pos
            beyond = (input_batch.positions[rows] - wanted).clamp_(min=0)
            input_batch.logits_indices = rows - beyond.to(rows.dtype)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Makes what captured graphs read; see upstream."""
        super().initialize_kv_cache(kv_cache_config, block_tables)
        self._prefill_attention: PrefillAttention | None = None
        self.graph_sequences = GraphSequences(
            self.vllm_config.compilation_config.max_cudagraph_capture_size or 0,
            self.max_num_reqs,
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
        """Attention metadata with one bidirectional sequence a block."""
        assert ubatch_idx == 0
        if self._prefill_attention is None:
            make_room(attn_groups, self.max_num_tokens)
            self._prefill_attention = PrefillAttention(self.vllm_config, self.device)
        block_lengths = self.canvases.block_length.np[input_batch.idx_mapping_np]
        blocks = BlockSequences.of(
            starts=input_batch.num_computed_tokens_np,
            lengths=input_batch.num_scheduled_tokens,
            block_lengths=block_lengths,
        )
        request_tables = block_tables
        captured = for_capture or cudagraph_mode == CUDAGraphMode.FULL
        if captured:
            num_tokens = input_batch.num_tokens_after_padding
            num_reqs, max_query_len, max_seq_len = num_tokens, self.canvases.width, self.max_model_len
            query_start_loc, seq_lens, block_tables, query_start_loc_cpu = self.graph_sequences.fill(
                blocks, num_tokens, block_tables
            )
        else:
            num_tokens, num_reqs = input_batch.num_tokens, len(blocks.request)
            max_query_len = int(np.diff(blocks.query_start_loc).max())
            max_seq_len = int(blocks.seq_lens.max())
            rows = async_tensor_h2d(blocks.request, dtype=torch.int64, device=self.device)
            query_start_loc = async_tensor_h2d(blocks.query_start_loc, device=self.device)
            seq_lens = async_tensor_h2d(blocks.seq_lens, device=self.device)
            block_tables = tuple(table[rows] for table in block_tables)
            query_start_loc_cpu = torch.from_numpy(blocks.query_start_loc)
        attn_metadata = build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=num_reqs,
            num_tokens=num_tokens,
            query_start_loc_gpu=query_start_loc,
            query_start_loc_cpu=query_start_loc_cpu,
            max_query_len=max_query_len,
            seq_lens=seq_lens,
            max_seq_len=max_seq_len,
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            causal=False,
            seq_lens_cpu_upper_bound=padded(blocks.seq_lens, num_reqs),
            positions=input_batch.positions,
            for_cudagraph_capture=for_capture,
        )
        if not captured and self._prefill_attention.wants(block_lengths):
            self._prefill_attention.attach(
                attn_metadata, attn_groups, request_tables, input_batch, block_lengths
            )
        return attn_metadata


def padded(lengths: np.ndarray, num_sequences: int) -> torch.Tensor:
    """The lengths on the host, 0 for sequences of padding."""
    padded = np.zeros(num_sequences, dtype=np.int32)
    padded[: len(lengths)] = lengths
    return torch.from_numpy(padded)
