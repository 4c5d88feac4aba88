# SPDX-License-Identifier: Apache-2.0
"""The settings of a diffusion model: what ``--diffusion-config`` accepts, resolved for a model."""

from vllm.v1.diffusion.config.accepted import MaskedDiffusionConfig
from vllm.v1.diffusion.config.limits import FEW_ANSWERS, LIMITS, MOST_READINGS, limit_of
from vllm.v1.diffusion.config.model import ResolvedDiffusionConfig, resolve_diffusion_config, settings
from vllm.v1.diffusion.config.published import end_tokens, published_defaults
from vllm.v1.diffusion.config.served import family_of, served_family
from vllm.v1.diffusion.config.setting import GENERATION, MODEL, TABLE, TOKENIZER, Setting

__all__ = [
    "FEW_ANSWERS",
    "GENERATION",
    "LIMITS",
    "MODEL",
    "MOST_READINGS",
    "TABLE",
    "TOKENIZER",
    "MaskedDiffusionConfig",
    "ResolvedDiffusionConfig",
    "Setting",
    "end_tokens",
    "family_of",
    "limit_of",
    "published_defaults",
    "resolve_diffusion_config",
    "served_family",
    "settings",
]
