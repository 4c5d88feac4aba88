# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""LoRA on a CPU: one matrix product an adapter, over the rows that are its own."""

from __future__ import annotations

from typing import Any

import torch

from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

__all__ = ["CPUAdapters"]

Groups = list[tuple[int, torch.Tensor]]
"""Adapters of a step: each one's place among the stacked weights, and its rows."""


class CPUAdapters(PunicaWrapperCPU):
    """Upstream's wrapper, for batches in which some rows have no adapter.

    Upstream's operators look up a row's weights by the place of its adapter, which is -1 for
    none: that is the last place, so such rows get whatever adapter is there.
    """

    def update_metadata(self, mapping: LoRAMapping, *args: Any, **kwargs: Any) -> None:
        """See upstream."""
        super().update_metadata(mapping, *args, **kwargs)
        self._tokens = _groups(self.token_lora_indices)
        self._samples = _groups(self.sampler_indices)

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        _shrink(y, x, w_t_all, scale, self._tokens)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        _expand(y[:, y_offset : y_offset + y_slice_size], x, w_t_all, self._tokens, add_inputs)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Adds the embeddings' adapters; see upstream."""
        _expand(y.view(-1, y.shape[-1]), x, lora_b_stacked, self._tokens, add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the head's adapters; see upstream."""
        x = x.view(-1, x.shape[-1])
        if buffer is None:
            buffer = x.new_zeros(len(x), lora_b_stacked.shape[-1], dtype=torch.float32)
        _shrink(buffer, x, lora_a_stacked, scale, self._samples)
        _expand(y.view(-1, y.shape[-1]), buffer, lora_b_stacked, self._samples, True)


def _groups(adapter_of_row: torch.Tensor) -> Groups:
    """The rows of each adapter; those of none (-1) are left out.

    Args:
        adapter_of_row: Places among the stacked weights, ``[rows]``.
    """
    places = sorted(set(adapter_of_row.tolist()))
    return [(place, (adapter_of_row == place).nonzero().flatten()) for place in places if place >= 0]


def _shrink(y: torch.Tensor, x: torch.Tensor, stacked: torch.Tensor, scale: float, groups: Groups) -> None:
    """Writes ``scale * x @ A`` of each row's adapter.

    Args:
        y: ``[rows, rank]``, zero where nothing is written.
        x: ``[rows, inputs]``.
        stacked: Every adapter's A, ``[adapters, 1, rank, inputs]``.
        scale: The factor.
        groups: The rows of each adapter.
    """
    for place, rows in groups:
        weight = stacked[place].flatten(0, -2).to(y.dtype)
        y[rows, : len(weight)] = scale * (x[rows].to(y.dtype) @ weight.T)


def _expand(y: torch.Tensor, x: torch.Tensor, stacked: torch.Tensor, groups: Groups, add: bool) -> None:
    """Adds ``x @ B`` of each row's adapter, or writes it.

    Args:
        y: ``[rows, outputs]``; either side may be padded.
        x: ``[rows, rank]``.
        stacked: Every adapter's B, ``[adapters, 1, outputs, rank]``.
        groups: The rows of each adapter.
        add: Whether to add.
    """
    for place, rows in groups:
        weight = stacked[place].flatten(0, -2).to(y.dtype)
        width = min(len(weight), y.shape[1])
        change = x[rows].to(y.dtype) @ weight[:width].T
        y[rows, :width] = y[rows, :width] + change if add else change
