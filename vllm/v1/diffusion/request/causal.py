# SPDX-License-Identifier: Apache-2.0
"""A request's parameters for a checkpoint that writes causally and denoises blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.v1.diffusion.families import SEEDED
from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.fields import ParameterError, require
from vllm.v1.diffusion.request.params import DiffusionParams, fields

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_OWN = ("mode", "causal_context", "seed_token", "max_thinking_tokens", "end_think_token_id")
"""Parameters that other models do not know."""

_OF_DENOISING = (
    "algorithm", "steps", "block_length", "max_steps", "exit_threshold", "eos_early_stop",
    "causal_context", "seed_token",
)  # fmt: skip
"""Parameters that a request without denoising does not read."""

_NOT_OF_DRAFTS = (
    "algorithm", "steps", "max_steps", "exit_threshold", "eos_early_stop", "causal_context", "seed_token",
    "infill", "infill_ids", "seed_canvas", "trace", "trace_top_k", "stream",
)  # fmt: skip
"""Parameters without effect on drafts and their verification."""

_UNREAD = {"autoregressive": _OF_DENOISING, "self_speculation": _NOT_OF_DRAFTS}

_NOT_OF_VERIFICATION: dict[str, Any] = {
    "logprobs": None,
    "structured_outputs": None,
    "bad_words": [],
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""Sampling parameters that depend on the tokens before a position, by their neutral values: a verified
row stands one position further."""


class CausalDecoding(NamedTuple):
    """How a request is decoded by a family that can do more than denoise.

    Attributes:
        mode: See ``DiffusionParams.mode``; None for a family that only denoises.
        causal: See ``Decoding``; also ``seeded`` and ``budget``.
    """

    mode: str | None = None
    causal: bool = True
    seeded: bool = False
    budget: tuple[int, int] | None = None

    @property
    def writes(self) -> bool:
        """Whether one token is written after the other: blocks of one token, which is the seed."""
        return self.mode == "autoregressive"

    @property
    def ends_early(self) -> bool:
        """Whether a block ends where it holds an end token and no mask before it, as in the card's code."""
        return self.mode == "diffusion" and (self.seeded or not self.causal)

    @property
    def verifies(self) -> bool:
        """Whether blocks are drafts."""
        return self.mode == "self_speculation"


def causal_decoding(
    given: DiffusionParams, params: SamplingParams | None, config: MaskedDiffusionConfig
) -> CausalDecoding:
    """Reads the parameters of these families, and refuses those without effect beside them.

    Args:
        given: The request's parameters.
        params: Its sampling parameters.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the parameter.
    """
    if config.mode is None:
        for name in _OWN:
            value = getattr(given, name)
            require(value is None, name, value, f"has no effect on this model, but on {', '.join(SEEDED)}")
        return CausalDecoding()
    mode = given.mode or config.mode
    unread: tuple[str, ...] = _UNREAD.get(mode, ())
    asked = {**{name: getattr(given, name) for name in fields()}, **given.numbers}
    if mode == "autoregressive":
        unread += tuple(given.numbers)
    for name in unread:
        require(asked.get(name) is None, name, asked.get(name), f"has no effect with diffusion_mode={mode!r}")
    for name, neutral in _NOT_OF_VERIFICATION.items() if mode == "self_speculation" and params else ():
        value = getattr(params, name)
        if value not in (None, neutral):
            message = f"{name}={value!r} is not supported with {PREFIX}mode={mode!r}."
            raise ParameterError(message, parameter=name, value=value)
    causal = given.causal_context is None or bool(given.causal_context)
    require(
        causal or not given.seed_token,
        "seed_token",
        given.seed_token,
        "needs a causal context, which diffusion_causal_context switches off",
    )
    seeded = causal and (given.seed_token is None or bool(given.seed_token))
    return CausalDecoding(mode, causal, seeded, _budget(given, config))


def _budget(given: DiffusionParams, config: MaskedDiffusionConfig) -> tuple[int, int] | None:
    """After how many tokens which id ends the thinking."""
    if given.max_thinking_tokens is None:
        require(
            given.end_think_token_id is None,
            "end_think_token_id",
            given.end_think_token_id,
            "has no effect without diffusion_max_thinking_tokens",
        )
        return None
    end = config.end_think_token_id if given.end_think_token_id is None else given.end_think_token_id
    require(
        end is not None,
        "max_thinking_tokens",
        given.max_thinking_tokens,
        "needs diffusion_end_think_token_id: the tokenizer has no </think>",
    )
    assert end is not None
    return given.max_thinking_tokens, end
