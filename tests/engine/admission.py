# SPDX-License-Identifier: Apache-2.0
"""The front end of engines that are never started: configurations and admitted requests."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.engine.conftest import GOLDEN
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor


def configured(model: str = "sdar", **settings: Any) -> Any:
    """The configuration of a golden checkpoint's engine."""
    from vllm.engine.arg_utils import EngineArgs

    common: dict[str, Any] = {"dtype": "float32", "max_model_len": 960}
    return EngineArgs(model=str(GOLDEN / model), **common | settings).create_engine_config()


@cache
def processor(family: str) -> InputProcessor:
    """The front end of an engine that is never started."""
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(
        model=str(GOLDEN / family), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4
    )
    return InputProcessor(args.create_engine_config())


def admitted(family: str, params: SamplingParams) -> SamplingParams:
    """What the engine core gets."""
    made: EngineCoreRequest = processor(family).process_inputs(
        "request", {"type": "token", "prompt_token_ids": [3, 4, 5]}, params, supported_tasks=("generate",)
    )
    assert made.sampling_params is not None
    return made.sampling_params
