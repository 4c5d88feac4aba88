# SPDX-License-Identifier: Apache-2.0
"""Configuration of SDAR models with experts."""

from transformers import Qwen3MoeConfig


class SDARMoeConfig(Qwen3MoeConfig):  # type: ignore[no-untyped-call]
    """Qwen3-MoE's configuration; ``block_size`` and ``mask_token_id`` are kept as given."""

    model_type = "sdar_moe"
