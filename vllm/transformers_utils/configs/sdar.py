# SPDX-License-Identifier: Apache-2.0
"""Configuration of SDAR models."""

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):  # type: ignore[no-untyped-call]
    """Qwen3's configuration; ``block_size`` and ``mask_token_id`` are kept as given."""

    model_type = "sdar"
