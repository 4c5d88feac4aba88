# SPDX-License-Identifier: Apache-2.0
"""What a response of the server says about its denoising, where the request asks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.frontend.closed_calls import ClosedCalls, OpenCalls

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.outputs import CompletionOutput

_COUNTS = ("steps", "tokens_per_forward", "steps_per_block")


def report_denoising(
    choice: Any, request: CompletionRequest | ChatCompletionRequest, output: CompletionOutput
) -> None:
    """Gives a response's choice a field ``diffusion``: the fields of ``CompletionOutput.diffusion``.

    A choice of a stream ends for calls of tools where the whole response's does: a canvas that is full
    ends with ``length``, whatever stands in it.

    ``diffusion_stats`` asks for the counts, which a stream has in the choice that ends it;
    ``diffusion_trace`` for ``trace`` and ``entropies``, and ``diffusion_trace_top_k`` for ``candidates``.
    Without any of them nothing is added, so other responses stay as they are.

    Args:
        choice: The choice, of a response or a chunk of one; changed in place.
        request: The request.
        output: What the engine reports of the choice.
    """
    _finish(choice, request, output)
    report = output.diffusion
    if report is None:
        return
    asked = (request.vllm_xargs or {}).get("diffusion_stats") and output.finished()
    said = {name: getattr(report, name) for name in _COUNTS} if asked else {}
    if asked and report.likelihood is not None:
        likelihood = asdict(report.likelihood)
        said["likelihood"] = {name: value for name, value in likelihood.items() if value is not None}
    if report.trace is not None:
        said["trace"], said["entropies"] = report.trace, report.entropies
    if report.candidates is not None:
        said["candidates"] = [[asdict(step) for step in steps] for steps in report.candidates]
    if said:
        choice.diffusion = said


def _finish(
    choice: Any, request: CompletionRequest | ChatCompletionRequest, output: CompletionOutput
) -> None:
    """Gives a stream the reason to end that the whole response has."""
    delta, reason = getattr(choice, "delta", None), getattr(choice, "finish_reason", None)
    if getattr(request, "tool_choice", None) not in (None, "auto"):
        return
    if isinstance(delta, ClosedCalls) and reason == "length":
        choice.finish_reason = "tool_calls"
    elif isinstance(delta, OpenCalls) and reason == "tool_calls":
        choice.finish_reason = output.finish_reason
