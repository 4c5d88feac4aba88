# SPDX-License-Identifier: Apache-2.0
"""What a loop returned, checked."""

from __future__ import annotations

from typing import Any

import torch

from vllm.v1.generation_loop.stages import is_last_stage

LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_step(result: Any) -> None:
    """Raises TypeError where ``step`` did not return ``(outputs or None, bool)``."""
    outputs, executed = result
    if not (outputs is None or isinstance(outputs, dict)) or not isinstance(executed, bool):
        raise TypeError(f"step returned {result!r}, not (outputs by client index or None, bool)")


def check_forward(output: Any, num_tokens: int) -> None:
    """Raises where ``forward`` did not return hidden states of ``num_tokens`` rows, or a stage's tensors."""
    from vllm.sequence import IntermediateTensors

    if not is_last_stage():
        if not isinstance(output, IntermediateTensors):
            raise TypeError(f"{type(output).__name__} returned, not hidden states for the next stage")
        for tensor in output.tensors.values():
            check_rows("hidden states", tensor, num_tokens)
        return
    check_rows("hidden states", output[0] if isinstance(output, tuple) else output, num_tokens)


def check_rows(what: str, tensor: Any, rows: int, width: int | None = None) -> None:
    """Raises where ``tensor`` is no ``[rows, width]`` tensor; any width where ``width`` is None."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{type(tensor).__name__} returned, not {what}")
    if tensor.dim() != 2 or len(tensor) != rows or width not in (None, tensor.shape[1]):
        raise ValueError(f"{what} of shape {list(tensor.shape)} returned, not [{rows}, {width or 'n'}]")
