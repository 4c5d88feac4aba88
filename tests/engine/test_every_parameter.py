# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter has an effect or is refused, those of a later upstream release too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm import SamplingParams
from vllm.v1.diffusion.params import _UNSUPPORTED, ParameterError, check_sampling_params

# What each does is tested in this folder and in tests/server, or happens in upstream's front end.
EFFECTIVE = {
    "n", "temperature", "top_p", "top_k", "greedy_filters", "seed", "max_tokens", "extra_args",
    "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
    "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "output_kind", "stream_interval", "output_text_buffer_length",
    "skip_clone", "skip_reading_prefix_cache", "structured_outputs",
}  # fmt: skip

ASKED_FOR: dict[str, Any] = {
    "allowed_token_ids": [1],
    "bad_words": ["a"],
    "flat_logprobs": True,
    "frequency_penalty": 0.5,
    "logit_bias": {1: 2.0},
    "logprob_token_ids": [1],
    "logprobs": 0,
    "min_p": 0.1,
    "min_tokens": 1,
    "presence_penalty": -0.5,
    "prompt_logprob_start": 0,
    "prompt_logprob_token_ids": [1],
    "prompt_logprobs": 0,
    "repetition_detection": SimpleNamespace(),
    "repetition_penalty": 1.2,
    "routed_experts_prompt_start": 3,
    "thinking_token_budget": 0,
    "trace_decode_token_ids": [1],
    "watermarking": True,
}


def test_no_parameter_is_forgotten() -> None:
    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert public == EFFECTIVE | set(_UNSUPPORTED)
    assert not EFFECTIVE & set(_UNSUPPORTED)
    assert set(ASKED_FOR) == set(_UNSUPPORTED)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_refused_by_name(name: str) -> None:
    params = SamplingParams()
    setattr(params, name, ASKED_FOR[name])
    with pytest.raises(ParameterError, match=f"^{name}="):
        check_sampling_params(params)


def test_defaults_and_what_asks_for_nothing_pass() -> None:
    check_sampling_params(SamplingParams())
    for name, neutral in _UNSUPPORTED.items():
        for value in neutral:
            params = SamplingParams()
            setattr(params, name, value)
            check_sampling_params(params)
