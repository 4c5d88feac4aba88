# SPDX-License-Identifier: Apache-2.0
"""Ids of tokens that mean something to a model: masks, ends, deletions, insertions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.config.accepted import MaskedDiffusionConfig
from vllm.v1.diffusion.config.setting import GENERATION, GIVEN, MODEL, TABLE, TOKENIZER, Setting, first
from vllm.v1.diffusion.families import ELASTIC, IN_TOKENIZER, SEEDED, Family

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def mask_token_id(
    model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig, published: int | None
) -> Setting:
    """The mask token; the tokenizer's where the family's is of a larger vocabulary."""
    if family.mask_token_id is None:
        if given.mask_token_id is not None:
            raise ValueError(
                f"diffusion_config: mask_token_id={given.mask_token_id} has no effect on {family.name} "
                "models, whose open positions hold random tokens."
            )
        return Setting(None, "the family has no mask")
    found = first(
        (given.mask_token_id, GIVEN),
        (getattr(model_config.hf_config, "mask_token_id", None), MODEL),
        (published, GENERATION),
        (family.mask_token_id, TABLE),
    )
    vocab_size = model_config.get_vocab_size()
    unfit = found.source == TABLE and not 0 <= found.value < vocab_size
    if unfit and not model_config.skip_tokenizer_init:
        from vllm.tokenizers import cached_tokenizer_from_config

        own = getattr(cached_tokenizer_from_config(model_config), "mask_token_id", None)
        found = found if own is None else Setting(own, TOKENIZER)
    if found.value == IN_TOKENIZER:
        raise ValueError(
            f"mask_token_id is in no file of this {family.name} checkpoint: its tokenizer names no mask "
            "token. Set it with --diffusion-config '{\"mask_token_id\": ID}'."
        )
    if not 0 <= found.value < vocab_size:
        raise ValueError(
            f"mask_token_id={found.value} ({found.source}) is outside the vocabulary of "
            f"{vocab_size} tokens. Set it in the model's config.json or with "
            "--diffusion-config '{\"mask_token_id\": ID}'."
        )
    return found


def of_model(hf_config: Any, given: MaskedDiffusionConfig, name: str) -> Setting:
    """An id that a model has or has not; the flag cannot say another."""
    own, asked = getattr(hf_config, name, None), getattr(given, name)
    if asked not in (None, own):
        raise ValueError(f"diffusion_config: {name}={asked} must be the model's own, {own}.")
    return Setting(own, MODEL if own is not None else "the model has none")


def first_end_token(hf_config: Any) -> int | None:
    """The end token that a configuration names, the first if it names several."""
    ids = getattr(hf_config, "eos_token_id", None)
    return (ids[0] if ids else None) if isinstance(ids, list) else ids


def delete_token_id(hf_config: Any, given: MaskedDiffusionConfig, family: Family) -> Setting:
    """The id that deletes; where answers grow, their end token."""
    if family.name not in ELASTIC:
        return of_model(hf_config, given, "delete_token_id")
    end, asked = hf_config.eos_token_id, given.delete_token_id
    if not isinstance(end, int) or asked not in (None, end):
        what = f"delete_token_id={asked}" if isinstance(end, int) else f"eos_token_id={end!r}"
        raise ValueError(f"{what} must be one id: the end token of {family.name} models deletes.")
    return Setting(end, f"{MODEL}, eos_token_id")


def end_think_token_id(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The token that ends the thinking, of a family that takes a thinking budget."""
    if family.name not in SEEDED:
        return Setting(None, "the family has no such setting")
    if given.end_think_token_id is not None or model_config.skip_tokenizer_init:
        return Setting(given.end_think_token_id, GIVEN)
    from vllm.tokenizers import cached_tokenizer_from_config

    return Setting(cached_tokenizer_from_config(model_config).get_vocab().get("</think>"), TOKENIZER)


def end_token_ids(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The end tokens of a family that tells the end of a turn from that of the text."""
    if given.end_token_ids is not None:
        return Setting(given.end_token_ids, GIVEN)
    if family.end_of_turn is None:
        return Setting(None, "the family has no such setting")
    eos = model_config.hf_config.eos_token_id
    ids = list(eos) if isinstance(eos, list) else [eos] if eos is not None else []
    text, turn = family.end_of_turn
    source = f"{MODEL}, {TABLE}"
    if not model_config.skip_tokenizer_init:
        from vllm.tokenizers import cached_tokenizer_from_config

        turn = cached_tokenizer_from_config(model_config).get_vocab().get(text, turn)
        source = f"{MODEL}, {TOKENIZER}"
    if turn < model_config.get_vocab_size() and turn not in ids:
        ids.append(turn)
    return Setting(ids, source)
