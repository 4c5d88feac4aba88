# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's ``generation_config.json`` says of denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.diffusion.checkpoint.files import checkpoint_files
from vllm.v1.diffusion.checkpoint.generation_defaults import generation_settings
from vllm.v1.diffusion.config.setting import GENERATION, Setting
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.policies.parameter import BlockLength, Parameter, PositiveCount
from vllm.v1.diffusion.policies.registry import built_in_numbers, built_in_policies

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.diffusion.policies.base import UnmaskingPolicy

logger = init_logger(__name__)

_LENGTHS = {
    "max_canvas_length": Parameter("Most tokens of a canvas.", BlockLength),
    "default_max_tokens": Parameter("Tokens of an answer whose request names no length.", PositiveCount),
}
_STEPS = Parameter("Denoising steps per block.", PositiveCount)


def published_defaults(model_config: ModelConfig, family: Family) -> tuple[dict[str, Any], list[str]]:
    """What the ``generation_config.json`` of a masked-diffusion checkpoint says of denoising.

    Args:
        model_config: The model.
        family: Its family.

    Returns:
        Settings with their values, and keys that have no counterpart.

    Raises:
        ValueError: A number is out of its range.
    """
    if family.mask_token_id is None:
        return {}, []  # Its keys are its policy's numbers.
    found, unserved = generation_settings(
        checkpoint_files(model_config).generation_config, family, built_in_policies()
    )
    for name, one in {**built_in_numbers(), "steps": _STEPS, **_LENGTHS}.items():
        if name in found:
            try:
                found[name] = one.parse(found[name])
            except ValueError as error:
                raise ValueError(f"generation_config.json: {name}={found[name]!r} {error}.") from None
    if found or unserved:
        logger.info_once(
            "%s: of denoising, generation_config.json sets %s%s.",
            family.name,
            ", ".join(f"{name}={value!r}" for name, value in found.items()) or "nothing that is a default",
            f"; not read: {', '.join(unserved)}" if unserved else "",
        )
    return found, unserved


def published_renoising(model_config: ModelConfig, policy: UnmaskingPolicy) -> dict[str, Setting]:
    """What the generation config of a family without a mask says of its decoding.

    Raises:
        ValueError: It names a sampler that is not known, or a number out of range.
    """
    generation = model_config.try_get_generation_config()
    sampler = generation.get("sampler_config") or {}
    kind = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
    if kind != "EntropyBoundSamplerConfig":
        raise ValueError(f"generation_config.json: sampler_config={kind!r} is not known.")
    known = {**policy.numbers, "max_denoising_steps": _STEPS}
    found = {name: {**generation, **sampler}.get(name) for name in known}
    settings = {}
    for name, value in found.items():
        if value is None:
            continue
        try:
            parsed = known[name].parse(value)
        except ValueError as error:
            raise ValueError(f"generation_config.json: {name}={value!r} {error}.") from None
        settings["steps" if name == "max_denoising_steps" else name] = Setting(parsed, GENERATION)
    return settings


def end_tokens(model_config: ModelConfig) -> frozenset[int]:
    """The end tokens that the model's generation config names, one or several."""
    ids = model_config.try_get_generation_config().get("eos_token_id")
    return frozenset([ids] if isinstance(ids, int) else ids or ())
