# SPDX-License-Identifier: Apache-2.0
"""Options of the engine that a diffusion model cannot have are refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.published import PUBLISHED


@pytest.mark.parametrize(
    "option",
    [
        {"enable_prompt_embeds": True},
        {"logits_processors": ["vllm.v1.sample.logits_processor:MinPLogitsProcessor"]},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_is_refused_by_its_name(option: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion import bundled_path

    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is not supported with diffusion models"):
        EngineArgs(model=bundled_path(), **option).create_engine_config()


def test_fp8_weights_are_refused_on_a_cpu() -> None:
    """There is no kernel for them: upstream fails while it loads the weights."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion import bundled_path

    with pytest.raises(ValueError, match="does not support: quantization='fp8'"):
        EngineArgs(model=bundled_path(), quantization="fp8").create_engine_config()


@pytest.mark.parametrize("family", ["SDAR-MoE", "LLaDA2", "LLaDA-MoE"])
def test_adapters_of_models_of_experts_are_refused_on_a_cpu(family: str, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    folder = PUBLISHED[family].write(tmp_path)
    with pytest.raises(ValueError, match="does not support: enable_lora with models of experts"):
        EngineArgs(model=str(folder), enable_lora=True, lora_target_modules=["o_proj"]).create_engine_config()
