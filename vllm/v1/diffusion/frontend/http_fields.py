# SPDX-License-Identifier: Apache-2.0
"""Fields of a server's request that never reach the sampling parameters, and their checks.

What reaches them is checked in ``admission``. ``docs/compatibility.md`` lists both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.frontend.admission import check_grammar_size
from vllm.v1.diffusion.frontend.canvases import STREAM
from vllm.v1.diffusion.frontend.lengths import name_length
from vllm.v1.diffusion.frontend.responses import check_response
from vllm.v1.diffusion.frontend.values import check_values
from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.fields import ParameterError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel

LABELS = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
)
"""OpenAI's fields that say who asks or what OpenAI keeps, like ``user``: they ask nothing of the answer."""

ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "n": (1,),
    "service_tier": ("auto", "default", "flex", "scale", "priority"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "stream_options.include_obfuscation": (False,),
    "verbosity": ("medium",),
    "web_search_options": ({},),
}
"""OpenAI's fields that vLLM does not have, and values that ask for what happens anyway."""

_EMPTY_IS_NONE = ("suffix",)
"""Fields in which an empty text asks for nothing, and which upstream refuses like any other text."""

_HINTS = {
    **dict.fromkeys(("enable_thinking", "thinking", "reasoning"), "Use chat_template_kwargs."),
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
}
"""What takes the place of a field that is refused."""


def _never(request: Any, config: VllmConfig) -> bool:
    return False


@dataclass(frozen=True)
class Rule:
    """When a field has an effect.

    Attributes:
        neutral: Values that ask for nothing.
        has_effect: Whether another value has an effect in this request.
        reason: Why it has none otherwise; reads after the field and its value.
    """

    neutral: tuple[Any, ...]
    has_effect: Callable[[Any, VllmConfig], bool]
    reason: str


RULES = {
    "use_beam_search": Rule((False,), _never, "is not supported with diffusion models"),
    "echo": Rule(
        (False,),
        lambda request, config: not hasattr(request, "messages"),
        "is not supported in a chat, where it asks for the prompt's log probabilities: use prompt_logprobs",
    ),
    "prompt_logprobs": Rule(
        (None,),
        lambda request, config: not getattr(request, "stream", False),
        "is not reported in a stream: use echo with logprobs",
    ),
    "length_penalty": Rule(
        (1.0,), _never, "has no effect without beam search, which diffusion models do not have"
    ),
    "priority": Rule(
        (0,),
        lambda request, config: config.scheduler_config.policy == "priority",
        "has no effect without --scheduling-policy priority",
    ),
    "stream_interval": Rule(
        (None,), lambda request, config: bool(request.stream), "has no effect without stream"
    ),
    "truncation_side": Rule(
        (None,),
        lambda request, config: request.truncate_prompt_tokens is not None,
        "has no effect without truncate_prompt_tokens",
    ),
    "kv_transfer_params": Rule((None, {}), _never, "is not supported with diffusion models"),
    "ec_transfer_params": Rule((None, {}), _never, "is not supported with diffusion models"),
    "return_token_offsets": Rule((None, False), _never, "has an effect on the render endpoints only"),
    "mm_payload": Rule(("tensors",), _never, "has an effect on the render endpoints only"),
    "media_io_kwargs": Rule((None, {}), _never, "has no effect: diffusion models read text only"),
    "mm_processor_kwargs": Rule((None, {}), _never, "has no effect: diffusion models read text only"),
}
"""Fields of upstream's requests that may have no effect."""

_REPORTED_IN_CHOICES = ("stats", "trace", "trace_top_k", "stream")


def check_request(request: OpenAIBaseModel, config: VllmConfig, server: Any = None) -> None:
    """Refuses what would be ignored, and names the answer's length where the request does not.

    Args:
        request: The request's body, parsed.
        config: The engine's configuration.
        server: Upstream's object that serves the endpoint; None where there is none.

    Raises:
        ParameterError: Names the first such field.
    """
    check_values(request, "")
    known = type(request).model_fields
    for name in _EMPTY_IS_NONE:
        if name in known and getattr(request, name) == "":
            setattr(request, name, None)
    for name, rule in RULES.items():
        value = getattr(request, name, None) if name in known else None
        if value is not None and value not in rule.neutral and not rule.has_effect(request, config):
            raise ParameterError(f"{name}={value!r} {rule.reason}.", parameter=name, value=value)
    _check_unknown(request, "")
    if isinstance(options := getattr(request, "stream_options", None), BaseModel):
        _check_unknown(options, "stream_options.")
    for name in ("structured_outputs", "response_format", "text", "tools"):
        if value := getattr(request, name, None):
            if isinstance(value, list):
                value = [one.model_dump() if isinstance(one, BaseModel) else one for one in value]
            elif not isinstance(value, (BaseModel, str)):
                value = vars(value)
            check_grammar_size(name, value, resolve_diffusion_config(config))
    asked = getattr(request, "vllm_xargs", None) or {}
    if (stream := asked.get(STREAM)) and getattr(request, "include_reasoning", True) is False:
        raise ParameterError(
            f"{STREAM}={stream!r} shows blocks whole, with the reasoning that include_reasoning=False hides.",
            parameter=STREAM,
            value=stream,
        )
    name_length(request, config)
    if "max_tool_calls" in known:
        check_response(request, server)
    if "use_beam_search" not in known:  # neither a completion nor a chat
        if params := getattr(request, "sampling_params", None):  # token ids in and out
            asked = {**asked, **(params.extra_args or {})}
        for name in _REPORTED_IN_CHOICES:
            if asked.get(PREFIX + name):
                raise ParameterError(
                    f"{PREFIX}{name} has an effect on completions and chat completions only.",
                    parameter=PREFIX + name,
                )


def _check_unknown(model: BaseModel, where: str) -> None:
    for name, value in (model.model_extra or {}).items():
        field = where + name
        neutral = ASKS_NOTHING.get(field, ())
        if value is None or field in LABELS or any(_same(value, one) for one in neutral):
            continue
        hint = _HINTS.get(field, "")
        if name.startswith(PREFIX):
            hint = "Diffusion parameters are members of vllm_xargs."
        elif name.startswith("guided_"):
            hint = "Use structured_outputs or response_format."
        why = "is no field that this server knows."
        if neutral:
            allowed = " or ".join(repr(one) for one in neutral)
            why = f"is not supported: only {allowed} asks for what happens anyway."
            field_and_value = f"{field}={value!r}"
        else:
            field_and_value = field
        message = f"{field_and_value} {why} {hint}".rstrip()
        raise ParameterError(message, parameter=field, value=value)


def _same(value: Any, neutral: Any) -> bool:
    """Whether both are equal and of one type: ``True`` is not 1."""
    return type(value) is type(neutral) and bool(value == neutral)
