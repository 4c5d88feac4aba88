# SPDX-License-Identifier: Apache-2.0
"""What the families' model classes promise."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from vllm.v1.diffusion.families import FAMILIES


@pytest.mark.parametrize(
    "unknown",
    [
        {"activation_type": "gelu"},
        {"alibi": True},
        {"attention_layer_norm": True},
        {"block_type": "sequential"},
        {"include_bias": True},
        {"input_emb_norm": True},
        {"layer_norm_type": "default"},
        {"rope": False},
    ],
)
def test_llada_layers_that_no_checkpoint_has_are_refused(unknown: dict[str, Any]) -> None:
    from vllm.transformers_utils.configs.llada import LLaDAConfig

    with pytest.raises(ValueError, match=next(iter(unknown))):
        LLaDAConfig(d_model=64, n_heads=2, n_layers=2, **unknown)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_classes_keep_what_their_backbones_support(family: Any) -> None:
    from vllm.model_executor.models.interfaces import supports_lora, supports_pp

    module, name = family.model
    model = getattr(import_module(f"vllm.model_executor.models.{module}"), name)
    backbone = model.__bases__[-1]
    assert supports_pp(model) == supports_pp(backbone)
    assert supports_lora(model) == supports_lora(backbone)
