# SPDX-License-Identifier: Apache-2.0
"""Settings of denoising that a checkpoint keeps in ``generation_config.json``.

The published code of several families reads its own keys there. Each becomes the engine's
default where it means the same; the others are named in a log line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vllm.v1.diffusion.checkpoint.known_fields import names
from vllm.v1.diffusion.families import WITHOUT_TIMETABLE, Family

_SAME = {
    "block_length": "block_length",
    "block_size": "block_length",
    "threshold": "threshold",
    "confidence_threshold": "threshold",
    "entropy_threshold": "entropy_bound",
    "edit_threshold": "edit_threshold",
    "editing_threshold": "edit_threshold",
    "low_threshold": "low_threshold",
    "max_post_steps": "max_post_steps",
    "mask_token_id": "mask_token_id",
    "max_canvas_length": "max_canvas_length",
    "max_new_tokens": "default_max_tokens",
    "mask_id": "mask_token_id",
}
"""The published key -> the field of ``--diffusion-config``."""

_OF_LOOP = {
    "reordered_diffusion": {
        "entropy_threshold": "entropy_threshold",
        "pos_penalty_factor": "position_penalty",
        "window_size": "block_length",
    },
}
"""The same for families whose code means something else by a key, by their loop."""

_ALGORITHM_KEYS = ("alg", "remasking", "remasking_strategy", "algorithm")
_ALGORITHMS = {"low_confidence": "low_confidence_static"}
"""Published names of algorithms that have another name here."""

_STEP_KEYS = ("steps", "denoising_steps", "diffusion_steps", "num_steps")
_LENGTH_KEYS = ("gen_length", "max_gen_toks")

_UNSERVED = (
    *_LENGTH_KEYS,
    *names("alg_temp alg_p cfg cfg_scale dual_cache eos_early_stop eps expand_budget factor"),
    *names("confidence_eos_eot_inf logits_eos_inf minimal_topk num_to_transfer number_transfer_tokens"),
    *names("pad_delete_to_right pos_penalty_factor right_shift_logits small_block_size steps_per_block"),
    *names("stochastic_transfer sub_block_length use_block_cache use_cache_dual window_size"),
)
"""Keys that published code reads and that no engine-wide setting means."""


def generation_settings(
    config: Mapping[str, Any], family: Family, algorithms: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Translates the keys.

    Args:
        config: ``generation_config.json``.
        family: The model's family.
        algorithms: Names of the unmasking policies.

    Returns:
        Fields of ``--diffusion-config`` with their values, and the keys that were left out.
    """
    # Bidirectional families' code counts ``steps`` over the whole response.
    per_response = family.loop == "full_diffusion"
    found: dict[str, Any] = {}
    own = _OF_LOOP.get(family.loop, {})
    left = [name for name in _UNSERVED if config.get(name) is not None and name not in own]
    for name, field in {**_SAME, **own}.items():
        if (value := config.get(name)) is not None:
            found.setdefault(field, value)
    if not per_response:
        for name in ("max_canvas_length", "default_max_tokens"):
            found.pop(name, None)
    for name in _ALGORITHM_KEYS:
        if (value := config.get(name)) is None:
            continue
        names_here = WITHOUT_TIMETABLE if family.loop == "elastic_diffusion" else _ALGORITHMS
        value = names_here.get(value, value)
        if value in algorithms:
            found.setdefault("algorithm", value)
        else:
            left.append(name)
    for name in _STEP_KEYS:
        if (value := config.get(name)) is None:
            continue
        if per_response and (block := found.get("block_length", family.block_length)) is not None:
            value = _per_block(value, config, block)
        if value is None:
            left.append(name)
        else:
            found.setdefault("steps", value)
    return found, sorted(left)


def _per_block(steps: int, config: Mapping[str, Any], block_length: int) -> int | None:
    """Steps a block, where the response's length is said too."""
    length = next((config[name] for name in _LENGTH_KEYS if config.get(name)), None)
    if not length or length % block_length:
        return None
    blocks = length // block_length
    return steps // blocks if steps % blocks == 0 else None
