# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter has an effect or is refused, those of a later upstream release too."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import SamplingParams
from vllm.v1.diffusion.frontend.admission import _UNSUPPORTED, check_supported
from vllm.v1.diffusion.request.fields import ParameterError

# What each does is tested in this folder, in tests/sampling and in tests/server, or happens in
# upstream's front end and scheduler.
EFFECTIVE = {
    "n", "temperature", "top_p", "top_k", "min_p", "greedy_filters", "seed", "max_tokens", "min_tokens",
    "extra_args",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "repetition_detection",
    "logit_bias", "allowed_token_ids", "bad_words",
    "logprobs", "logprob_token_ids", "flat_logprobs",
    "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
    "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "output_kind", "stream_interval", "output_text_buffer_length",
    "prompt_logprobs", "skip_clone", "skip_reading_prefix_cache", "structured_outputs",
}  # fmt: skip

ASKED_FOR: dict[str, Any] = {
    "prompt_logprob_start": 0,
    "prompt_logprob_token_ids": [1],
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
        check_supported(params)


def test_defaults_and_what_asks_for_nothing_pass() -> None:
    check_supported(SamplingParams())
    for name, (neutral, _) in _UNSUPPORTED.items():
        for value in neutral:
            params = SamplingParams()
            setattr(params, name, value)
            check_supported(params)
