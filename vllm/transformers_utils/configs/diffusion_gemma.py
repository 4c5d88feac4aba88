# SPDX-License-Identifier: Apache-2.0
"""Configuration of DiffusionGemma: transformers', under the names that the diffusion loops read."""

from __future__ import annotations

from typing import Any

from transformers import DiffusionGemmaConfig

_KNOWN: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": ("vision", None),
}
"""What the family's checkpoints say of layers that exist in one form only."""


class DiffusionGemmaLoopConfig(DiffusionGemmaConfig):  # type: ignore[no-untyped-call]
    """``DiffusionGemmaConfig``, its canvas length as ``block_size``.

    Upstream sends a model whose configuration has a ``canvas_length`` through a path of its own. The
    diffusion loops call it the block length. Both layouts of the layers' heads are read:
    ``global_head_dim`` with ``num_global_key_value_heads``, and ``per_layer_config``.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members of ``config.json`` that have no field.

        Raises:
            ValueError: The file describes a layer that the family does not have.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.canvas_length is not None:
            self.block_size = self.canvas_length
            self.canvas_length = None
        text: Any = self.text_config
        for name, known in _KNOWN.items():
            if (given := getattr(text, name, known[0])) not in known:
                raise ValueError(f"{self.model_type}: {name}={given!r} is not known; only {known[0]!r} is.")
        # In full layers the values are the keys' projection: those layers store none of their own.
        text.attention_k_eq_v = True
