# SPDX-License-Identifier: Apache-2.0
"""Texts that are scored by an engine and by the plain reference, which each family's tests compare."""

from __future__ import annotations

from typing import Any

import pytest

TOLERANCE = 2e-4
"""Of a log probability in float32, whatever shares the batch."""


def params_of(**given: Any) -> Any:
    """Parameters of a request that is scored; ``diffusion_`` ones by their names."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    own = {name: given.pop(name) for name in list(given) if name in DiffusionParams.model_fields}
    plain = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "ignore_eos": True}
    return SamplingParams(**plain | given, extra_args=DiffusionParams(**own).to_extra_args())


def scored(llm: Any, texts: list[list[int]], params: list[Any]) -> list[Any]:
    """The outputs of one batch."""
    prompts = [{"prompt_token_ids": text} for text in texts]
    outputs: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    return outputs


def values_of(output: Any, text: list[int], begin: int = 1) -> list[float]:
    """The log probabilities of a text's tokens; those before ``begin`` have none."""
    entries = output.prompt_logprobs
    assert output.prompt_token_ids == text
    assert len(entries) == len(text)
    assert entries[:begin] == [None] * begin
    return [entry[token].logprob for entry, token in zip(entries[begin:], text[begin:], strict=True)]


def assert_scores(output: Any, text: list[int], want: list[float], begin: int = 1) -> None:
    """Compares with the plain reference."""
    assert values_of(output, text, begin) == pytest.approx(want, abs=TOLERANCE)
