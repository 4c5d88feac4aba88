# SPDX-License-Identifier: Apache-2.0
"""Configuration of Dream models."""

from transformers import Qwen2Config


class DreamConfig(Qwen2Config):  # type: ignore[no-untyped-call]
    """Qwen2's configuration; ``mask_token_id`` is kept as given."""

    model_type = "Dream"
