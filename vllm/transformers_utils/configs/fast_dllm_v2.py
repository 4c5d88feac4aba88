# SPDX-License-Identifier: Apache-2.0
"""Configuration of Fast-dLLM v2 models."""

from typing import Any

from transformers import Qwen2Config


class FastDLLMQwenConfig(Qwen2Config):  # type: ignore[no-untyped-call]
    """Qwen2's configuration, with ``bd_size``; ``mask_token_id`` is kept as given."""

    model_type = "Fast_dLLM_Qwen"

    bd_size: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members that have no field; ``bd_size`` is known as ``block_size``."""
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.block_size = self.bd_size
