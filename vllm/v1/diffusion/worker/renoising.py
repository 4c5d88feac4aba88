# SPDX-License-Identifier: Apache-2.0
"""Rows and sequences of canvases that hold random tokens behind a causal context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.renoising import RenoisingStates, UniformNoise
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.layers.canvas_window import Canvases, CanvasWindows, use_canvas_windows
from vllm.v1.diffusion.layers.prefill_attention import StepAttention
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.renoising import Renoising
from vllm.v1.diffusion.sampling.rows import CausalContextRows
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.sequences import Attention, Sequences, canvas_rows, window_ends
from vllm.v1.worker.gpu.input_batch import InputBatch


class RenoisingRows(CausalContextRows):
    """Rows of whole canvases, which the model is given as embeddings."""

    _added = False

    @override
    def bind(self, sampler: DenoisingSampler, model: nn.Module, vllm_config: VllmConfig) -> None:
        canvases, model_config = self.canvases, vllm_config.model_config
        noise = canvases.noise
        assert isinstance(noise, UniformNoise)
        noise.seeds, noise.vocab_size = sampler.sampling_states.seeds, model_config.get_vocab_size()
        hidden_size = model_config.hf_text_config.hidden_size
        self._noise = noise
        self._states = RenoisingStates(canvases, hidden_size, cast(torch.dtype, model_config.dtype))
        self._renoising = Renoising(sampler, noise, self._states, model)
        sampler.statistics = self._renoising.statistics
        sampler.unmasking = self._renoising
        sampler.logits.soft_cap = self._renoising.network.soft_cap

    @override
    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        self._noise.add(slot, decoding, prompt_len)
        self._states.add(slot, decoding)
        self._added = True

    @override
    def remove(self, slot: int) -> None:
        self._noise.remove(slot)
        self._states.remove(slot)

    @override
    def inputs(self, input_batch: InputBatch) -> dict[str, Any]:
        """Embeds known tokens as they are and canvases with what the step before predicted."""
        if self._added:
            self._added = False
            self._states.apply_added()
        network = self._renoising.network
        embeddings = network.embed_input_ids(input_batch.input_ids[: input_batch.num_tokens])
        if input_batch.num_draft_tokens:
            slot, column = input_batch.expanded_idx_mapping, input_batch.expanded_local_pos
            rows = input_batch.logits_indices
            # What is given is no prediction, and a block's first step has none.
            predicted = self.canvases.masked[slot, column] & (self.canvases.step[slot] > 0)
            conditions = self._states.predicted[slot, column] * predicted[:, None]
            embeddings[rows] = network.canvas_inputs(embeddings[rows], conditions)
        return {"inputs_embeds": embeddings}


@dataclass(frozen=True)
class CanvasSequences(Sequences):
    """The known tokens of each window, then its canvas.

    Attributes:
        causal: Whether a row sees the rows before it only, int32 ``[n]``.
    """

    causal: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, lengths: np.ndarray, canvases: np.ndarray) -> CanvasSequences:
        """Splits windows ``[start, start + length)`` before their last ``canvases`` positions."""
        known = lengths - canvases
        sizes = np.stack((known, canvases), axis=1).ravel()
        ends = np.stack((starts + known, starts + lengths), axis=1).ravel()
        used = sizes > 0
        query_start_loc = np.zeros(int(used.sum()) + 1, dtype=np.int32)
        query_start_loc[1:] = sizes[used].cumsum()
        return cls(
            request=np.repeat(np.arange(len(starts)), 2)[used],
            query_start_loc=query_start_loc,
            seq_lens=ends[used].astype(np.int32),
            causal=np.tile(np.array([1, 0], dtype=np.int32), len(starts))[used],
        )


class CanvasAttention(Attention):
    """A causal sequence of known tokens and a bidirectional one, the canvas, per window."""

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        super().__init__(vllm_config, canvases, device)
        self._windowed, self._window = use_canvas_windows(vllm_config)

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> CanvasSequences:
        return CanvasSequences.of(
            input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens, canvas_rows(input_batch)
        )

    @override
    def causal(self, sequences: Sequences, count: int, captured: bool) -> torch.Tensor:
        assert isinstance(sequences, CanvasSequences) and not captured
        return async_tensor_h2d(sequences.causal, device=self.device)

    @override
    def finish(self, attention: StepAttention, input_batch: InputBatch) -> None:
        """Tells sliding-window layers which canvases do not fit into a window with their context."""
        lengths, widths = input_batch.num_scheduled_tokens, canvas_rows(input_batch)
        ends = window_ends(input_batch)
        outside = (widths > 0) & (ends > self._window)
        if not self._windowed or not outside.any():
            return
        only = bool((outside & (lengths == widths)).all())
        row_ends = lengths.cumsum()
        for table, layers in attention.tables():
            names = self._windowed.intersection(layers)
            windows = CanvasWindows(
                tuple(
                    self._of_width(width, np.flatnonzero(outside & (widths == width)), ends, row_ends, table)
                    for width in (np.unique(widths[outside]).tolist() if names else ())
                ),
                only,
            )
            for name in names:
                attention.metadata[name].canvas_windows = windows

    def _of_width(
        self, width: int, which: np.ndarray, ends: np.ndarray, row_ends: np.ndarray, table: torch.Tensor
    ) -> Canvases:
        rows = row_ends[which, None] - width + np.arange(width)
        index, rows_gpu, ends_gpu = (
            async_tensor_h2d(values, device=self.device)
            for values in (which, rows, ends[which].astype(np.int32))
        )
        return Canvases(rows_gpu, ends_gpu, int(ends[which].min()), table[index])
