# SPDX-License-Identifier: Apache-2.0
"""Checks a checkpoint's files once, before an engine is built from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.diffusion.checkpoint.fields import check_fields
from vllm.v1.diffusion.checkpoint.files import checkpoint_files
from vllm.v1.diffusion.checkpoint.special_tokens import check_special_tokens
from vllm.v1.diffusion.families import FAMILIES, Family

if TYPE_CHECKING:
    from vllm.config import ModelConfig

logger = init_logger(__name__)


def check_checkpoint(model_config: ModelConfig, family: Family) -> None:
    """Refuses a checkpoint that the family's network or decoding would get wrong.

    A plug-in's family is checked by the plug-in: its network is not known here.

    Args:
        model_config: The model.
        family: Its family.

    Raises:
        ValueError: Names the field or token, and the file that has it.
    """
    if family.architectures not in {known.architectures for known in FAMILIES}:
        return
    files = checkpoint_files(model_config)
    check_special_tokens(family.name, family.executes, files.config, files.generation_config, files.tokenizer)
    unknown = check_fields(family.name, files.config)
    if unknown:
        logger.info(
            "%s: fields of config.json that are not known, unset or off, and ignored: %s.",
            family.name,
            ", ".join(unknown),
        )
