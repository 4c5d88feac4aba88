# SPDX-License-Identifier: Apache-2.0
"""Which sampling parameters a request may carry: refused where they cannot take effect."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.diffusion.config import (
    FEW_ANSWERS,
    MOST_READINGS,
    end_tokens,
    family_of,
    limit_of,
    resolve_diffusion_config,
)
from vllm.v1.diffusion.frontend.values import check_values
from vllm.v1.diffusion.kernels.rules import MAX_CANVAS
from vllm.v1.diffusion.policies.memory import check_memory
from vllm.v1.diffusion.policies.parameter import PREFIX, in_float32
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.repetitions import nested_counts

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_BY_ID = (
    "is not supported with diffusion models: log probabilities of a prompt (prompt_logprobs, "
    "diffusion_score_from) are those of its own tokens and the likeliest ones"
)
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "prompt_logprob_start": ((None,), _BY_ID),
    "prompt_logprob_token_ids": ((None,), _BY_ID),
    "routed_experts_prompt_start": ((0,), "is not supported with diffusion models"),
    "thinking_token_budget": (
        (None, -1),
        "is not supported: a block's tokens unmask in any order, so none of them is the last thought",
    ),
    "trace_decode_token_ids": ((None, []), "is not supported with diffusion models"),
    "watermarking": ((None, False), "is not supported with diffusion models"),
}
"""Parameters without effect: the values that ask for nothing, and why others are refused."""

# Rows of upstream's tables in vllm/v1/worker/gpu/sample/logit_bias.py.
MOST_ALLOWED_IDS = 1024
_MOST_IDS = {"allowed_token_ids": MOST_ALLOWED_IDS, "logit_bias": 1024}
_MOST_STOP_IDS = 128
_SEEDS = range(-(2**63), 2**63)


def check_sampling_params(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Refuses what block diffusion would ignore or could not do.

    Args:
        params: As the client gave them.
        vllm_config: The engine's configuration.

    Raises:
        ParameterError: Names the first such parameter.
    """
    for name in params.__struct_fields__:
        check_values(getattr(params, name), name)
    check_supported(params)
    _check_stream(params)
    if _of_beam_search(params):
        raise _error("use_beam_search", True, "is not supported: a block's tokens do not extend a prefix")
    if params.seed is not None and params.seed not in _SEEDS:
        raise _error("seed", params.seed, "must fit into 64 bits")
    _check_float32(params)
    _check_work(params, vllm_config)
    for name, most in _MOST_IDS.items():
        value = getattr(params, name)
        if value is not None and len(value) > most:
            raise _error(name, f"({len(value)} entries)", f"may hold {most} at most")
    for name in ("bad_words", "allowed_token_ids"):
        if params.structured_outputs is not None and getattr(params, name):
            reason = (
                "is not supported with structured outputs: a grammar may have to write a token of its own"
            )
            raise _error(name, getattr(params, name), reason)
    _check_mask_token(params, vllm_config)
    if params.bad_words or params.min_tokens or params.allowed_token_ids or params.logit_bias:
        _check_bans(params, vllm_config)


def _check_stream(params: SamplingParams) -> None:
    """Refuses to send the open block where nothing is sent before the end, or all is sent again."""
    asked = (params.extra_args or {}).get(PREFIX + "stream")
    # What else it may be is refused by its name.
    if asked == "steps" and params.output_kind is not RequestOutputKind.DELTA:
        raise _error(PREFIX + "stream", asked, "has an effect in a stream only (of deltas, in Python)")


def admit_reading(params: SamplingParams, block_length: int) -> None:
    """Makes of a request what upstream's keys for reading a canvas ask for.

    Args:
        params: The request's own copy of its parameters, changed.
        block_length: Tokens of its blocks.

    Raises:
        ParameterError: Names ``diffusion_constrained``.
    """
    extra = params.extra_args or {}
    if extra.get("diffusion_read_only"):
        params.max_tokens = min(params.max_tokens or block_length, block_length)
        params.ignore_eos = True
    if extra.get("diffusion_constrained"):
        _constrain(params)


def _constrain(params: SamplingParams) -> None:
    """Lets a request write the ids only that it wants log probabilities of; changes its parameters."""
    ids, key = list(params.logprob_token_ids or ()), "diffusion_constrained"
    reason = None
    if not ids:
        reason = "needs logprob_token_ids, which it allows"
    elif len(ids) > MOST_ALLOWED_IDS:
        reason = f"may allow {MOST_ALLOWED_IDS} ids at most, not {len(ids)}"
    elif params.allowed_token_ids not in (None, ids) or params.structured_outputs is not None:
        reason = "excludes allowed_token_ids and structured outputs"
    if reason is not None:
        raise _error(key, True, reason)
    params.allowed_token_ids = ids


def check_one_block(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Refuses a response that would have to be one block and is longer than any block.

    Args:
        params: A request's parameters, its template resolved.
        vllm_config: The engine's configuration.

    Raises:
        ParameterError: Names ``max_tokens``.
    """
    served = resolve_diffusion_config(vllm_config).block_length
    longest = vllm_config.model_config.max_model_len
    named = (params.extra_args or {}).get("diffusion_block_length") is not None
    if family_of(vllm_config).block_length is not None or named or served != min(longest, MAX_CANVAS):
        return
    length = longest if params.max_tokens is None else params.max_tokens
    if length > served and longest > served:
        reason = (
            f"must not exceed {served}: without diffusion_block_length a response is one block. If it "
            f"is not given, it is what the prompt leaves of max_model_len={longest}"
        )
        raise _error("max_tokens", params.max_tokens, reason)


def check_policy(decoding: Decoding, vllm_config: VllmConfig) -> None:
    """Refuses an algorithm that this engine has no memory for.

    Args:
        decoding: How the request is to be denoised.
        vllm_config: The engine's configuration.

    Raises:
        ParameterError: Names ``diffusion_algorithm``.
    """
    # A canvas is as wide as all open blocks.
    width = resolve_diffusion_config(vllm_config).canvas_length
    try:
        check_memory(decoding.algorithm, vllm_config.scheduler_config.max_num_seqs, width)
    except ValueError as error:
        raise ParameterError(str(error), parameter="diffusion_algorithm", value=decoding.algorithm) from error


def keep_stop_tokens(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Keeps stop tokens that a request names apart from end tokens that end nothing.

    Where a family's end tokens end nothing, the scheduler drops those that upstream takes
    from the generation config. One that the request itself names is to stay: upstream adds
    none to a request that ignores them.

    Args:
        params: The request's own copy of its parameters, changed.
        vllm_config: The engine's configuration.
    """
    ends = end_tokens(vllm_config.model_config)
    if not resolve_diffusion_config(vllm_config).stop_at_eos and ends.intersection(
        params.stop_token_ids or ()
    ):
        params.ignore_eos = True


def check_supported(params: SamplingParams) -> None:
    """Refuses parameters that diffusion does not know.

    Raises:
        ParameterError: Names the first of them.
    """
    for name, (neutral, reason) in _UNSUPPORTED.items():
        value = getattr(params, name, neutral[0])
        if not any(value is n or (type(value) is type(n) and value == n) for n in neutral):
            raise _error(name, value, reason)


def _of_beam_search(params: SamplingParams) -> bool:
    """Whether upstream's beam search made them: it asks for one token after the other.

    Nothing else says so. ``skip_clone`` is upstream's mark of parameters of its own making; those of
    its server keep ``detokenize``.
    """
    logprobs = params.logprobs or 0
    own = params.skip_clone and params.watermarking is False and not params.detokenize
    return own and params.max_tokens == 1 and logprobs > 0 and logprobs % 2 == 0


def _check_float32(params: SamplingParams) -> None:
    """Refuses numbers that are no such numbers where they are computed with."""
    scale = in_float32(params.repetition_penalty)
    # Logits are multiplied by the one or the other.
    if scale == 0 or not math.isfinite(scale) or not math.isfinite(in_float32(1 / scale)):
        raise _error(
            "repetition_penalty",
            params.repetition_penalty,
            "and what 1 is divided by it must be above 0 and finite in float32",
        )
    if in_float32(params.top_p) == 0:
        raise _error("top_p", params.top_p, "is 0 in float32, which leaves no token")
    for token, bias in (params.logit_bias or {}).items():
        # Minus infinity itself bans a token.
        if math.isnan(bias) or (math.isfinite(bias) and not math.isfinite(in_float32(bias))):
            raise _error("logit_bias", {token: bias}, "must be a number that is finite in float32")


def _check_work(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Refuses answers and grammars that would take more work than the operator allows a request."""
    config = resolve_diffusion_config(vllm_config)
    most = limit_of(config, "n_limit")
    if config.n_limit is None:  # Half of the engine's places are left to others.
        most = min(most, max(FEW_ANSWERS, vllm_config.scheduler_config.max_num_seqs // 2))
    if params.n > most:
        raise _error("n", params.n, f"must be at most {most} (n_limit of --diffusion-config)")
    grammar = params.structured_outputs
    if grammar is None:
        return
    for name in ("json", "regex", "choice", "grammar", "structural_tag"):
        check_grammar_size(f"structured_outputs: {name}", getattr(grammar, name), config)
        _check_repetitions(name, nested_counts(name, getattr(grammar, name)), params.n, vllm_config)
    _check_backend(params)


def _check_repetitions(name: str, counts: int, answers: int, vllm_config: VllmConfig) -> None:
    """Refuses a grammar whose every mask would take more work than the operator allows a request.

    A mask tries each token of the vocabulary from each count, and each answer has masks of its own.
    """
    config, size = resolve_diffusion_config(vllm_config), vllm_config.model_config.get_vocab_size()
    most = limit_of(config, "repetition_limit")
    if config.repetition_limit is None:
        most = min(most, max(1, MOST_READINGS // size))
    if counts > 1 and counts * answers > most:
        each = f" in each of n={answers} answers" if answers > 1 else ""
        raise ParameterError(
            f"structured_outputs: {name} nests repetitions of {counts} counts in all{each}, between which "
            f"nothing has to stand, and may nest {most} (repetition_limit of --diffusion-config).",
            parameter="structured_outputs",
            value=f"({counts} counts)",
        )


def _check_backend(params: SamplingParams) -> None:
    """Refuses a grammar for which upstream's ``auto`` would take another backend than xgrammar.

    An engine has one backend, which its first grammar chooses: whether another one's grammar could be
    compiled would depend on which came first.
    """
    grammar = params.structured_outputs
    if grammar is None or not grammar._backend_was_auto or grammar._backend == "xgrammar":
        return
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    try:
        validate_xgrammar_grammar(params)
    except VLLMValidationError as error:
        raise ParameterError(
            f"structured_outputs cannot be compiled by xgrammar, which 'auto' stands for: {error} "
            '--structured-outputs-config \'{"backend": "' + str(grammar._backend) + "\"}' serves it.",
            parameter="structured_outputs",
        ) from error


def check_grammar_size(name: str, value: Any, config: MaskedDiffusionConfig) -> None:
    """Refuses a grammar of more characters than the operator allows a request.

    Args:
        name: What the client gave it as.
        value: The grammar, as text or as what JSON would write; None for none.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the parameter.
    """
    if value is None:
        return
    if isinstance(value, BaseModel):
        size = len(value.model_dump_json())
    else:
        size = len(value) if isinstance(value, str) else len(json.dumps(value, default=str))
    if size > (most := limit_of(config, "grammar_limit")):
        raise ParameterError(
            f"{name} has {size} characters, and may have {most} (grammar_limit of --diffusion-config).",
            parameter=name.split(":")[0],
            value=f"({size} characters)",
        )


def _check_bad_words(words: list[list[int]], config: MaskedDiffusionConfig) -> None:
    """Refuses bad words that would take more work in every step than the operator allows a request."""
    longest, total = max(map(len, words), default=0), sum(map(len, words))
    for found, name, what in (
        (longest, "bad_word_limit", "a word"),
        (total, "bad_words_limit", "all words"),
    ):
        if found > (most := limit_of(config, name)):
            raise _error(
                "bad_words",
                f"({found} tokens in {what})",
                f"may hold {most} tokens in {what} ({name} of --diffusion-config)",
            )


def _check_mask_token(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Refuses lists of tokens that name the mask token, which is never generated: it has no effect there."""
    mask = resolve_diffusion_config(vllm_config).mask_token_id
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        value = getattr(params, name)
        if value and mask in value:
            raise _error(name, value, f"names the mask token, {mask}, which is never generated")


def _check_bans(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Refuses a request some of whose positions could be left without a token."""
    config = resolve_diffusion_config(vllm_config)
    mask = config.mask_token_id
    model_config = vllm_config.model_config
    vocab_size = model_config.get_vocab_size()
    banned = {*(config.edit_ids or ()), *(() if mask is None else (mask,))}
    for token, bias in (params.logit_bias or {}).items():
        if not bias < math.inf or (token == mask and bias > 0):
            why = "is the mask token, which is never generated" if token == mask else "must be below infinity"
            raise _error("logit_bias", {token: bias}, why)
        if bias == -math.inf:
            banned.add(token)
    words, stops = _resolved(params, model_config)
    if params.max_tokens is not None:  # A word longer than the answer cannot stand in it.
        words = [word for word in words if len(word) <= params.max_tokens]
    _check_bad_words(words, config)
    for word in words:
        if max(word) >= vocab_size:
            raise _error("bad_words", params.bad_words, f"has tokens beyond the model's {vocab_size}")
        if mask in word:
            raise _error("bad_words", params.bad_words, "has the mask token, which is never generated")
        # A longer word bans any of its tokens in some neighbourhood.
        banned.update(word)
    if params.min_tokens:
        if len(stops) > _MOST_STOP_IDS:
            raise _error(
                "stop_token_ids", f"({len(stops)} with end tokens)", f"may hold {_MOST_STOP_IDS} at most"
            )
        banned.update(stops)
    allowed = params.allowed_token_ids
    if banned.issuperset(range(vocab_size) if allowed is None else allowed):
        names = ("allowed_token_ids", "bad_words", "logit_bias", "min_tokens")
        name = next(n for n in names if getattr(params, n))
        raise _error(
            name,
            getattr(params, name),
            "may leave a position without any token: at least one must be left that is not the mask "
            "token, deletes and inserts nothing, is in no bad word, not biased to minus infinity and, with "
            "min_tokens, no stop token",
        )


def _resolved(params: SamplingParams, model_config: ModelConfig) -> tuple[list[list[int]], set[int]]:
    """The bad words' tokens and all stop tokens, as upstream will find them."""
    resolved = params.clone()
    tokenizer = cached_tokenizer_from_config(model_config)
    resolved.update_from_generation_config(
        model_config.try_get_generation_config(), getattr(tokenizer, "eos_token_id", None)
    )
    if tokenizer is not None:
        resolved.update_from_tokenizer(tokenizer)
    elif params.bad_words:
        raise _error("bad_words", params.bad_words, "needs a tokenizer, which skip_tokenizer_init leaves out")
    return resolved.bad_words_token_ids or [], resolved.all_stop_token_ids


def _error(name: str, value: Any, reason: str) -> ParameterError:
    return ParameterError(f"{name}={value!r} {reason}.", parameter=name, value=value)
