# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of a batch in which requests have many rows of logits."""

from __future__ import annotations

import numpy as np
from torch import nn

from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu.input_batch import InputBatch


class RowAdapters:
    """Tells the layers which adapter each row of a step is for.

    The runner gives every request one row of logits, so an adapted head would take other
    requests' adapters, or none: here a request has as many as its window denoises.
    """

    def __init__(self, model: nn.Module, num_slots: int) -> None:
        """Makes the states.

        Args:
            model: The model, its layers adapted.
            num_slots: Requests that may run at a time.
        """
        self._model = model
        self._adapter = np.zeros(num_slots, dtype=np.int32)

    def add(self, slot: int, request: LoRARequest | None) -> None:
        """Takes a slot for a request.

        Args:
            slot: The slot.
            request: Its adapter; None for none.
        """
        self._adapter[slot] = request.lora_int_id if request else 0

    def remove(self, slot: int) -> None:
        """Gives a request's slot back.

        Args:
            slot: The slot.
        """
        self._adapter[slot] = 0

    def apply(self, input_batch: InputBatch, row_requests: np.ndarray) -> None:
        """Sets the adapters of a step's tokens and rows of logits.

        Args:
            input_batch: The step's batch.
            row_requests: Which of its requests each row of logits belongs to.
        """
        adapters = self._adapter[input_batch.idx_mapping_np]
        mapping = LoRAMapping(
            tuple(adapters.repeat(input_batch.num_scheduled_tokens)),
            tuple(adapters[row_requests]),
            is_prefill=True,
        )
        self._model.lora_manager.set_adapter_mapping(mapping)  # type: ignore[union-attr, operator]
