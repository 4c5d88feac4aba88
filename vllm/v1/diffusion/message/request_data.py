# SPDX-License-Identifier: Apache-2.0
"""What the scheduler tells the worker of a new request, beyond upstream's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.message.compiled_grammar import CompiledGrammar, form_of
from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.request import StructuredOutputRequest


@dataclass
class DiffusionRequestData(NewRequestData):
    """A request with a grammar: whether reasoning comes before it. Or one whose prompt is scored.

    Attributes:
        reasoning_ended: Whether the prompt ends the reasoning; None if that was not checked.
        reasoning_parser_kwargs: The reasoning parser's arguments.
        compiled: The grammar; None where the workers have to compile it.
        targets: What is scored of the prompt, which comes before the request itself; None for nothing.
    """

    reasoning_ended: bool | None = None
    reasoning_parser_kwargs: dict[str, Any] | None = None
    compiled: CompiledGrammar | None = None
    targets: Targets | None = None


def described(
    data: NewRequestData, structured: StructuredOutputRequest | None, reasoning_ended: bool | None
) -> NewRequestData:
    """Adds what the worker needs to know of a request with a grammar.

    Args:
        data: Upstream's.
        structured: The request's grammar; None for none.
        reasoning_ended: Whether the prompt ends the reasoning; None if that was not checked.
    """
    if structured is None:
        return data
    grammar = structured.grammar
    compiled = None
    if isinstance(grammar, StructuredOutputGrammar):
        compiled = CompiledGrammar(grammar, form_of(grammar))
    return DiffusionRequestData(
        **vars(data),
        compiled=compiled,
        reasoning_ended=reasoning_ended,
        reasoning_parser_kwargs=structured.reasoning_parser_kwargs,
    )
