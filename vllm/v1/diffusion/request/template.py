# SPDX-License-Identifier: Apache-2.0
"""Templates: answers of which some tokens are given and the rest, the holes, are written.

A text (``diffusion_infill``) or token ids (``diffusion_infill_ids``). Upstream's names,
``diffusion_seed_canvas`` and ``diffusion_pinned``, are accepted too and mean what they mean there,
but for the length: a seed may span blocks, and is the whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.fields import ParameterError, require
from vllm.v1.diffusion.request.params import check_max_tokens

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

HOLE = -1
"""A template's token that is to be written."""
_UNSAID = 16
"""``max_tokens`` of ``SamplingParams`` and of a completion where nothing was given."""
_GROWTH = 64
"""Tokens by which an answer may outgrow its template where nothing else was said."""
_MARKER = re.compile(r"<\|hole:([0-9]{1,9})\|>")
_MARKER_BEGINS = "<|hole"
_INFILL, _IDS, _SEED = (PREFIX + name for name in ("infill", "infill_ids", "seed_canvas"))


class TemplateFields(Protocol):
    """The fields of ``DiffusionParams`` that are read here."""

    @property
    def infill_ids(self) -> Sequence[int] | None:
        """The answer's token ids and holes."""

    @property
    def seed_canvas(self) -> Sequence[int] | None:
        """The answer's token ids."""

    @property
    def pinned(self) -> Sequence[int] | None:
        """The positions that are kept."""


def template_of(given: TemplateFields, mask_token_id: int | None) -> tuple[int, ...] | None:
    """The template that a request's token ids stand for.

    Args:
        given: The request's parameters, of the right types.
        mask_token_id: Id of the mask token; None where noise is no mask.

    Returns:
        The answer's tokens, ``HOLE`` where one is to be written; None if there is no
        template. In a seed without pinned positions, all that are no mask are kept; where
        noise is no mask none are: the seed is what the canvases begin with.

    Raises:
        ParameterError: The parameters contradict each other.
    """
    seed, pinned = given.seed_canvas, given.pinned
    require(seed is not None or pinned is None, "pinned", pinned, f"needs a {_SEED} to keep")
    if given.infill_ids is not None:
        require(seed is None, "seed_canvas", seed, f"and {_IDS} (or {_INFILL}) exclude each other")
        return _template("infill_ids", given.infill_ids, mask_token_id)
    if seed is None:
        return None
    if pinned is None:
        kept = {i for i, token in enumerate(seed) if mask_token_id is not None and token != mask_token_id}
    else:
        kept = set(pinned)
        require(len(kept) == len(pinned), "pinned", pinned, "names a position twice")
        last = len(seed) - 1
        require(all(p <= last for p in kept), "pinned", pinned, f"must hold positions from 0 to {last}")
        masks = sorted(p for p in kept if seed[p] == mask_token_id)
        require(not masks, "pinned", pinned, f"holds the mask token {mask_token_id} at {masks}")
    return _template("seed_canvas", [t if i in kept else HOLE for i, t in enumerate(seed)], mask_token_id)


def _template(name: str, ids: Sequence[int], mask_token_id: int | None) -> tuple[int, ...]:
    masks = [i for i, token in enumerate(ids) if token == mask_token_id]
    require(not masks, name, ids, f"holds the mask token {mask_token_id} at {masks}: a hole is {HOLE}")
    require(HOLE in ids, name, ids, "leaves nothing to write")
    return tuple(ids)


def admit_template(params: SamplingParams, vllm_config: VllmConfig, grows: bool = False) -> None:
    """Turns a template's text into ids and makes the request as long as its template.

    The template is the whole answer: ``max_tokens`` becomes its length unless it may grow, and an
    end token in a hole ends nothing.

    Args:
        params: The request's own copy of its parameters, changed.
        vllm_config: The engine's configuration.
        grows: Whether the answer may become longer than the template, ``max_tokens`` at most.

    Raises:
        ParameterError: The text has no hole or a malformed one, the ids are outside
            the vocabulary or too many, ``max_tokens`` are fewer, or ``min_tokens`` more.
    """
    extra = params.extra_args or {}
    text = extra.get(_INFILL)
    if text is not None:
        written = _ids_of(text, vllm_config)
        for key in (_IDS, _SEED):
            if extra.get(key, written) != written:
                raise ParameterError(f"{_INFILL} and {key} exclude each other.", parameter=key)
        extra = params.extra_args = {**extra, _IDS: written}
    key = _IDS if extra.get(_IDS) is not None else _SEED
    seed, name = extra.get(key), key.removeprefix(PREFIX)
    if seed is None:
        return
    model_config = vllm_config.model_config
    size, longest = model_config.get_vocab_size(), model_config.max_model_len
    outside = sorted({t for t in seed if t >= size})
    require(not outside, name, seed, f"must hold ids below {size}, not {outside}")
    require(len(seed) < longest, name, f"{len(seed)} ids", f"must leave room for a prompt in {longest}")
    # A canvas that is only read may be read in part.
    read = params.max_tokens if extra.get(PREFIX + "read_only") else None
    if read is None and params.max_tokens is not None and params.max_tokens != _UNSAID:
        check_max_tokens(params.max_tokens, len(seed))
    if params.min_tokens > len(seed):
        reason = f"must not exceed the {len(seed)} tokens of the template, which is the whole answer"
        raise ParameterError(
            f"min_tokens={params.min_tokens} {reason}.", parameter="min_tokens", value=params.min_tokens
        )
    if not grows:
        params.max_tokens = min(read or len(seed), len(seed))
    elif params.max_tokens is None or params.max_tokens < len(seed):
        params.max_tokens = min(len(seed) + _GROWTH, longest - 1)
    params.ignore_eos = True


def check_room(params: SamplingParams, prompt_len: int, max_model_len: int) -> None:
    """Refuses a template that would be cut.

    Args:
        params: A request's parameters, admitted.
        prompt_len: Tokens of its prompt.
        max_model_len: Tokens of prompt and answer, at most.

    Raises:
        ParameterError: Names what the template was given as.
    """
    extra = params.extra_args or {}
    seed = extra.get(_SEED) if extra.get(_IDS) is None else extra[_IDS]
    if seed is not None and prompt_len + len(seed) > max_model_len:
        name = next(key for key in (_INFILL, _IDS, _SEED) if extra.get(key) is not None)
        raise ParameterError(
            f"{name}: {len(seed)} tokens do not fit behind a prompt of {prompt_len}: "
            f"max_model_len={max_model_len}.",
            parameter=name,
        )


def split_prompt(text: str) -> tuple[str, str]:
    """Splits a template before its first hole: what may serve as a prompt, and the rest."""
    begin = text.find(_MARKER_BEGINS)
    return (text, "") if begin < 0 else (text[:begin], text[begin:])


def _ids_of(text: str, vllm_config: VllmConfig) -> list[int]:
    """A text's template in token ids; each piece between holes is tokenised alone."""
    model_config = vllm_config.model_config
    tokenizer = cached_tokenizer_from_config(model_config)
    require(tokenizer is not None, "infill", text, f"needs a tokenizer; give {_IDS}")
    ids: list[int] = []
    pieces = _MARKER.split(text)
    malformed = any(_MARKER_BEGINS in piece for piece in pieces[::2])
    holes = [int(piece) for piece in pieces[1::2]]
    require(
        bool(holes) and not malformed and min(holes) > 0 and sum(holes) < model_config.max_model_len,
        "infill",
        text,
        "must have a hole, and each written as <|hole:N|>, for N tokens, below "
        f"{model_config.max_model_len} in all",
    )
    for i, piece in enumerate(pieces):
        if i % 2:
            ids += [HOLE] * int(piece)
        else:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids
