# SPDX-License-Identifier: Apache-2.0
"""Fields of a server's request that never reach the sampling parameters, and their checks.

What reaches them is checked in ``admission``. ``docs/compatibility.md`` lists both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.request.fields import PREFIX, ParameterError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel

LABELS = ("metadata", "prompt_cache_key", "safety_identifier")
"""OpenAI's fields that say who asks, like ``user``: they ask nothing of the answer."""

ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "metadata": ({},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""OpenAI's fields that vLLM does not have, and values that ask for what happens anyway."""


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
        "is not supported in a chat: with it upstream asks for the prompt's log probabilities",
    ),
    "length_penalty": Rule(
        (1.0,), _never, "has no effect without beam search, which diffusion models do not have"
    ),
    "priority": Rule(
        (0,),
        lambda request, config: config.scheduler_config.policy == "priority",
        "has no effect without --scheduling-policy priority",
    ),
    "return_tokens_as_token_ids": Rule(
        (None, False),
        lambda request, config: request.logprobs not in (None, False),
        "has no effect without logprobs",
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

_TOLD_IN_CHOICES = ("stats", "trace")


def check_request(request: OpenAIBaseModel, config: VllmConfig) -> None:
    """Refuses what would be ignored.

    Raises:
        ParameterError: Names the first such field.
    """
    known = type(request).model_fields
    for name, rule in RULES.items():
        value = getattr(request, name, None) if name in known else None
        if value is not None and value not in rule.neutral and not rule.has_effect(request, config):
            raise ParameterError(f"{name}={value!r} {rule.reason}.", parameter=name, value=value)
    _check_unknown(request, "")
    if stream_options := getattr(request, "stream_options", None):
        _check_unknown(stream_options, "stream_options.")
    if "use_beam_search" not in known:  # neither a completion nor a chat
        asked = getattr(request, "vllm_xargs", None) or {}
        if params := getattr(request, "sampling_params", None):  # token ids in and out
            asked = {**asked, **(params.extra_args or {})}
        for name in _TOLD_IN_CHOICES:
            if asked.get(PREFIX + name):
                raise ParameterError(
                    f"{PREFIX}{name} has an effect on completions and chat completions only.",
                    parameter=PREFIX + name,
                )


def _check_unknown(model: OpenAIBaseModel, where: str) -> None:
    for name, value in (model.model_extra or {}).items():
        if value is None or name in LABELS or value in ASKS_NOTHING.get(name, ()):
            continue
        hint = ""
        if name.startswith(PREFIX):
            hint = " Diffusion parameters are members of vllm_xargs."
        elif name.startswith("guided_"):
            hint = " Use structured_outputs or response_format."
        raise ParameterError(
            f"{where}{name} is no field that this server knows.{hint}", parameter=where + name, value=value
        )
