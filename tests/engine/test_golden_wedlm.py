# SPDX-License-Identifier: Apache-2.0
"""WeDLM: its decoder and sampler gave these ids; the engine must give the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.cases import random_prompt
from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import cases_of, generate
from tests.engine.watching import check as check_canvases
from tests.engine.watching import watch

FOLDER = GOLDEN / "wedlm"
CASES = cases_of(FOLDER)


@pytest.fixture(scope="module")
def wedlm() -> Iterator[Any]:
    """An engine whose windows may have 32 positions, with prompts in chunks and cached prefixes."""
    own = {"diffusion_config": {"block_length": 32}, "max_num_batched_tokens": 96}
    yield from started(model=str(FOLDER), enable_prefix_caching=True, **own)


def asked(max_tokens: int, stop: list[int] | None = None, temperature: float = 0.0, **own: Any) -> Any:
    """A request's parameters; those of diffusion without their prefix."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    params = {"max_tokens": max_tokens, "stop_token_ids": stop or [], "temperature": temperature}
    return DiffusionParams(trace=True, **own).sampling_params(ignore_eos=True, detokenize=False, **params)


def of_golden(case: dict[str, Any]) -> Any:
    """A golden case as a request; its parameters are the published code's."""
    given = case["params"]
    return asked(
        given["max_tokens"],
        given["stop_token_ids"],
        block_length=given["window"],
        entropy_threshold=given["entropy_threshold"] or 0.0,
        position_penalty=given["pos_penalty_factor"],
    )


def check(completion: Any, case: dict[str, Any]) -> None:
    """Ids, and the forward that unmasked each, are the published ones, whose last forward writes nothing."""
    assert list(completion.token_ids) == case["output_ids"], case["name"]
    assert [step for step, _ in completion.diffusion.trace] == case["unmask_step"], case["name"]
    assert completion.diffusion.steps == case["num_forward"] - 1, case["name"]


def test_alone(wedlm: Any) -> None:
    for case in CASES:
        check(generate(wedlm, [(case["prompt_ids"], of_golden(case))])[0], case)


def test_batched(wedlm: Any) -> None:
    twice = CASES + CASES[::-1]
    completions = generate(wedlm, [(case["prompt_ids"], of_golden(case)) for case in twice])
    for completion, case in zip(completions, twice, strict=True):
        check(completion, case)


def test_log_probabilities_slide_with_the_window(wedlm: Any) -> None:
    """What was kept of a token's step leaves with the token, whatever its column was then."""
    how = of_golden(CASES[1])
    how.logprobs = 2
    (completion,) = generate(wedlm, [(CASES[1]["prompt_ids"], how)])
    check(completion, CASES[1])
    report = completion.diffusion
    for token, found, (_, probability), entropy in zip(
        completion.token_ids, completion.logprobs, report.trace, report.entropies, strict=True
    ):
        assert math.exp(found[token].logprob) == pytest.approx(probability, abs=1e-3)
        # Of a vocabulary of 512, whose entropy is that of this token and of what it leaves to the others.
        rest = 1 - probability
        least = -sum(p * math.log(p) for p in (probability, rest) if p > 0)
        assert least - 1e-2 <= entropy <= least + rest * math.log(512) + 1e-2


def test_long_prompts_in_chunks_and_from_the_cache(wedlm: Any) -> None:
    """A prompt longer than a step; then the same prefix, which ends anywhere."""
    prompt = list(random_prompt(300, 4))
    requests = [(prompt, asked(20, block_length=8)), (prompt[:290], asked(17))]
    alone = [list(generate(wedlm, [request])[0].token_ids) for request in requests]
    assert [list(c.token_ids) for c in generate(wedlm, requests)] == alone
    outputs = wedlm.generate({"prompt_token_ids": prompt[:290]}, requests[1][1], use_tqdm=False)
    assert outputs[0].num_cached_tokens >= 256
    assert list(outputs[0].outputs[0].token_ids) == alone[1]


def test_where_the_context_ends(wedlm: Any) -> None:
    (completion,) = generate(wedlm, [(list(random_prompt(1024 - 21, 6)), asked(64))])
    assert (len(completion.token_ids), completion.finish_reason) == (21, "length")


def test_drawn_tokens_follow_the_seed(wedlm: Any) -> None:
    requests = [(CASES[0]["prompt_ids"], asked(24, temperature=1.0)) for _ in range(3)]
    for (_, how), seed in zip(requests, (5, 5, 6), strict=True):
        how.seed = seed
    one, same, other = (list(c.token_ids) for c in generate(wedlm, requests))
    assert one == same != other
    assert list(generate(wedlm, requests[:1])[0].token_ids) == one


def test_a_template_is_kept(wedlm: Any) -> None:
    """Given tokens are before the masks of the window like those that were unmasked."""
    template = [-1, -1, 77, -1, 78, *[-1] * 20, 79]
    (completion,) = generate(wedlm, [(CASES[1]["prompt_ids"], asked(26, infill_ids=template))])
    assert [completion.token_ids[i] for i in (2, 4, 25)] == [77, 78, 79]
    assert len(completion.token_ids) == 26 and 508 not in completion.token_ids


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"max_steps": 3}, "diffusion_max_steps=3 has no effect on this model, which has no blocks"),
        ({"eos_early_stop": True}, "diffusion_eos_early_stop=True has no effect"),
        ({"block_length": 64}, "diffusion_block_length=64 must divide the served block length, 32"),
        ({"cache": "dual"}, "diffusion_cache='dual' has no effect on this model"),
    ],
)
def test_refused(wedlm: Any, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(wedlm, [([1, 2, 3], asked(8, **own))])


def test_a_window_is_watched_as_it_slides(wedlm: Any) -> None:
    case = CASES[0]
    seen = watch(wedlm, case["prompt_ids"], of_golden(case))
    assert [token for delta in seen.deltas for token in delta] == case["output_ids"]
    check_canvases(seen)
