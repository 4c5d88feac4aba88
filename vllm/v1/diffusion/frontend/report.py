# SPDX-License-Identifier: Apache-2.0
"""What a response of the server says about its denoising, where the request asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.outputs import CompletionOutput


def report_denoising(
    choice: Any, request: CompletionRequest | ChatCompletionRequest, output: CompletionOutput, tokens: int
) -> None:
    """Gives a response's choice a field ``diffusion``.

    ``diffusion_stats`` asks for ``steps``, ``tokens_per_forward`` and
    ``steps_per_block``, which a stream has in the choice that ends it;
    ``diffusion_trace`` for ``trace``: for each of the choice's tokens the step that
    unmasked it, from 0, and its probability in that step. Without either nothing is
    added, so other responses stay as they are.

    Args:
        choice: The choice, of a response or a chunk of one; changed in place.
        request: The request.
        output: What the engine told of the choice.
        tokens: The choice's tokens so far.
    """
    asked = request.vllm_xargs or {}
    said: dict[str, Any] = {}
    metrics = output.spec_decode_metrics
    if asked.get("diffusion_stats") and metrics is not None:
        steps = len(metrics.per_step_accepted)
        said["steps"] = steps
        said["tokens_per_forward"] = round(tokens / max(steps, 1), 4)
        said["steps_per_block"] = steps_per_block(metrics.per_step_accepted)
    if output.unmask_trace is not None:
        said["trace"] = output.unmask_trace
    if said:
        choice.diffusion = said


def steps_per_block(emitted: Iterable[int]) -> list[int]:
    """Steps of each block that finished.

    Args:
        emitted: Tokens that each denoising step emitted: a block's, or none.
    """
    blocks, steps = [], 0
    for tokens in emitted:
        steps += 1
        if tokens:
            blocks.append(steps)
            steps = 0
    return blocks
