# SPDX-License-Identifier: Apache-2.0
"""WeDLM is known by name, and refused: nothing here decodes its windows."""

from typing import Any

from transformers import PretrainedConfig


class WeDLMConfig(PretrainedConfig):
    """Raises when it is made.

    WeDLM denoises under plain causal attention, the unmasked tokens of its window moved to the front.
    """

    model_type = "wedlm"

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuses the checkpoint.

        Raises:
            ValueError: Always; but transformers makes one without arguments to compare with.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if kwargs or getattr(self, "architectures", None):
            raise ValueError(
                "WeDLM models are not served: their decoder reorders a window of masks under causal "
                "attention, which is not implemented here."
            )
