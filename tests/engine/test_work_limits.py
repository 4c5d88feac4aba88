# SPDX-License-Identifier: Apache-2.0
"""What a request may ask for is bounded, by the operator or by default; no engine is started."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.admission import admitted, configured
from tests.engine.conftest import GOLDEN
from vllm import SamplingParams
from vllm.v1.diffusion.config import LIMITS
from vllm.v1.diffusion.loops.block import BlockDiffusionLoop
from vllm.v1.diffusion.loops.full import FullDiffusionLoop
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.repetitions import nested_counts

_CHOICES = [f"c{i}" for i in range(20000)]

_ENUM = {"type": "string", "enum": _CHOICES}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extra_args": {"diffusion_steps": 257}}, "diffusion_steps=257 must be at most 256.*steps_limit"),
        (
            {"extra_args": {"diffusion_algorithm": "edit", "diffusion_max_post_steps": 257}},
            "diffusion_max_post_steps=257 must be at most 256.*post_steps_limit",
        ),
        ({"n": 17}, "n=17 must be at most 16 .*n_limit"),
        ({"bad_words": ["t1 " * 65], "max_tokens": 200}, r"bad_words=.*65 tokens.*bad_word_limit"),
        (
            {"bad_words": [f"t{i}" + " t2" * 20 for i in range(60)], "max_tokens": 40},
            "bad_words=.*bad_words_limit",
        ),
        (
            {"structured_outputs": {"choice": _CHOICES}},
            "structured_outputs: .* has [0-9]+ characters.*grammar_limit",
        ),
        ({"structured_outputs": {"regex": "a" * 65537}}, "regex has 65537 characters.*grammar_limit"),
        (
            {"structured_outputs": {"json": {"type": "string", "enum": _CHOICES}}},
            "json has [0-9]+ characters.*grammar_limit",
        ),
        (
            {"structured_outputs": {"regex": "(a?){1,1100}"}},
            "regex nests repetitions of 1100 counts.*repetition_limit",
        ),
        (
            {"structured_outputs": {"json": {"type": "string", "pattern": "^(a?){1,1200}$"}}},
            "json nests repetitions of 1200 counts.*repetition_limit",
        ),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_work_is_bounded_by_default(given: dict[str, Any], message: str) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    given = dict(given)
    if grammar := given.get("structured_outputs"):
        given["structured_outputs"] = StructuredOutputsParams(**grammar)
    with pytest.raises(ParameterError, match=message) as refused:
        admitted("sdar", SamplingParams(**given))
    assert refused.value.parameter
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("kind", "grammar", "counts"),
    [
        ("regex", "(a?){1,3}", 3),
        ("regex", "((a?){1,3}){1,4}", 12),
        ("regex", "(?:(?:\\p{L}*){1,5}){1,5}", 25),
        ("regex", "(a{1,3}|b{1,4}){1,5}", 20),
        ("regex", "([a-z]{1,20} ?){1,50}", 1000),
        ("regex", "(a?){30,}", 30),
        ("regex", "(()?){1,20}", 20),
        # What stands between the rounds leaves one count.
        ("regex", "[1-4]{4}(/[1-4]{4}){3}", 1),
        ("regex", "([a-z]{1,20}( [a-z]{1,20}){0,200}\\.){1,50}", 1),
        ("regex", "[^](){}]{1,60000}", 1),
        ("regex", "(a*)*", 1),
        # Others say that these are none.
        ("regex", "((", 1),
        ("regex", "{3}", 1),
        ("json", "{", 1),
        # Rules of rules, also of themselves.
        ("grammar", 'root ::= x{1,10}\nx ::= y{1,10}\ny ::= "a"?', 100),
        ("grammar", 'root ::= sum\nsum ::= term ("+" term){1,4}\nterm ::= [0-9]{1,3} | "(" sum ")"', 1),
        ("grammar", 'start: x~1..5\nx: y~1..5\ny: "a"?', 25),
        ("json", {"anyOf": [{"patternProperties": {"((a?){1,6}){1,6}": {}}}]}, 36),
        ("json", {"properties": {"pattern": {"type": "string"}}}, 1),
        ("structural_tag", '{"format": {"type": "regex", "pattern": "((a?){1,6}){1,6}"}}', 36),
        ("choice", ["((a?){1,6}){1,6}"], 1),
    ],
)
def test_counts_of_nested_repetitions(kind: str, grammar: Any, counts: int) -> None:
    assert nested_counts(kind, grammar) == counts


def test_what_the_bounds_allow_is_admitted() -> None:
    admitted("sdar", SamplingParams(n=16, extra_args={"diffusion_steps": 256}))
    admitted("sdar", SamplingParams(bad_words=["t1 " * 64], max_tokens=200))
    # A longer word than the answer is dropped, not refused.
    admitted("sdar", SamplingParams(bad_words=["t1 " * 65], max_tokens=16))
    # As many steps as a block has tokens.
    admitted("llada", SamplingParams(max_tokens=30, extra_args={"diffusion_steps": 256}))


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs": {"choice": _CHOICES}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"enum": _CHOICES}},
            }
        },
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": _ENUM}}]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_the_server_refuses_a_grammar_by_the_client_s_field(given: dict[str, Any]) -> None:
    """Before upstream has parsed it."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    asked = ChatCompletionRequest(messages=[{"role": "user", "content": "t1"}], **given)
    (name,) = given
    with pytest.raises(ParameterError, match=f"{name} has [0-9]+ characters.*grammar_limit"):
        BlockDiffusionLoop().validate_request(asked, configured())


def test_repetitions_by_vocabulary_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask tries every token from every count, and each answer has masks of its own."""
    from vllm.v1.diffusion.frontend import admission

    admitted("sdar", SamplingParams(n=16, structured_outputs=_regex("(a?){1,64}")))
    with pytest.raises(ParameterError, match=r"65 counts in all in each of n=16 answers.* may nest 1024"):
        admitted("sdar", SamplingParams(n=16, structured_outputs=_regex("(a?){1,65}")))
    monkeypatch.setattr(admission, "MOST_READINGS", 20 * 512 + 1)
    admitted("sdar", SamplingParams(structured_outputs=_regex("(a?){1,20}")))
    admitted("sdar", SamplingParams(structured_outputs=_regex("([a-z]{1,20},){1,500}")))
    with pytest.raises(ParameterError, match=r"21 counts in all, between .* may nest 20 .repetition_limit"):
        admitted("sdar", SamplingParams(structured_outputs=_regex("(a?){1,21}")))
    given = configured(diffusion_config={"repetition_limit": 21})
    BlockDiffusionLoop().validate_params(SamplingParams(structured_outputs=_regex("(a?){1,21}")), given)


@pytest.mark.parametrize("name", sorted(LIMITS.keys() - {"grammar_time_limit"}))
def test_the_operator_sets_the_bounds(name: str) -> None:
    """In both directions."""
    ask: dict[str, Any] = {
        "steps_limit": lambda n: {"extra_args": {"diffusion_steps": n}},
        "post_steps_limit": lambda n: {
            "extra_args": {"diffusion_algorithm": "edit", "diffusion_max_post_steps": n}
        },
        "bad_word_limit": lambda n: {"bad_words": ["x" * n]},
        "bad_words_limit": lambda n: {"bad_words": ["x" * (n // 2), "y" * (n - n // 2)]},
        "grammar_limit": lambda n: {"structured_outputs": _regex("a" * n)},
        "repetition_limit": lambda n: {"structured_outputs": _regex(f"(a?){{1,{n}}}")},
        "n_limit": lambda n: {"n": n},
        "candidates_limit": lambda n: {  # One step per block: one for each token.
            "max_tokens": n,
            "extra_args": {
                "diffusion_algorithm": "low_confidence_static",
                "diffusion_steps": 1,
                "diffusion_trace": True,
                "diffusion_trace_top_k": 1,
            },
        },
        "score_samples_limit": lambda n: {
            "prompt_logprobs": 0,
            "extra_args": {"diffusion_likelihood": "monte_carlo", "diffusion_score_samples": n},
        },
    }
    from vllm.v1.diffusion import bundled_path

    for limit in (40, LIMITS[name] + 300):
        given = {name: limit, "bad_word_limit": 9999, "bad_words_limit": 9999} | {name: limit}
        sampled = name == "score_samples_limit"  # Of bidirectional models only.
        model = bundled_path("llada" if sampled else "sdar")
        config = configured(model, max_model_len=256, diffusion_config=given)
        loop = FullDiffusionLoop() if sampled else BlockDiffusionLoop()
        loop.validate_params(SamplingParams(**{"max_tokens": None} | ask[name](limit)), config)
        with pytest.raises(ParameterError, match=name):
            loop.validate_params(SamplingParams(**{"max_tokens": None} | ask[name](limit + 1)), config)


MASK = json.loads((GOLDEN / "sdar" / "config.json").read_text())["mask_token_id"]


@pytest.mark.parametrize(
    "given",
    [
        {"stop_token_ids": [5, MASK]},
        {"allowed_token_ids": [MASK, 5]},
        {"logprobs": 1, "logprob_token_ids": [MASK]},
        {"bad_words": ["<|MASK|>"]},
        {"bad_words": ["t1", "t2 <|MASK|> t3"]},
        {"logit_bias": {MASK: 1.0}},
        {"extra_args": {"diffusion_infill_ids": [5, MASK, -1]}},
    ],
    ids=str,
)
def test_lists_of_tokens_do_not_name_the_mask(given: dict[str, Any]) -> None:
    """It is never generated, so it has no effect in any of them."""
    (*_, name) = given.get("extra_args", given)
    with pytest.raises(ParameterError, match=rf"{name}=.* mask token|{name}.*{MASK}") as refused:
        admitted("sdar", SamplingParams(max_tokens=8, **given))
    assert refused.value.parameter == name


def test_all_log_probabilities_are_admitted() -> None:
    """Their list leaves the mask token out, as ``tests/sampling/test_logprobs.py`` sees."""
    config = configured(max_logprobs=-1)
    BlockDiffusionLoop().validate_params(SamplingParams(logprobs=-1), config)
    # What asks for what happens anyway.
    admitted("sdar", SamplingParams(logit_bias={MASK: -100.0}))


def _regex(regex: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(regex=regex)


def test_a_default_beyond_its_bound() -> None:
    """It raises the default bound, and contradicts one that was given."""
    config = configured(diffusion_config={"steps": 500, "block_length": 8}).diffusion_config
    assert config.steps_limit == 500
    with pytest.raises(ValueError, match=r"steps=500 \(--diffusion-config\) must be at most steps_limit=300"):
        configured(diffusion_config={"steps": 500, "block_length": 8, "steps_limit": 300})
    for name in LIMITS:
        for value in (0, -1, 2**70, "many"):
            with pytest.raises(ValueError, match=name):
                configured(diffusion_config=json.dumps({name: value}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 1e-50}, "repetition_penalty=1e-50 .*float32"),
        ({"repetition_penalty": 1e-39}, "repetition_penalty=1e-39 .*float32"),
        ({"repetition_penalty": 1e39}, "repetition_penalty=1e.39 .*float32"),
        ({"logit_bias": {5: 1e39}}, "logit_bias=.5: 1e.39. .*float32"),
        ({"logit_bias": {5: -1e300}}, "logit_bias=.5: -1e.300. .*float32"),
        ({"top_p": 1e-50}, "top_p=1e-50 is 0 in float32"),
        (
            {"extra_args": {"diffusion_algorithm": "factor", "diffusion_factor": 1e-50}},
            "diffusion_factor=1e-50 .*float32.* it is 0",
        ),
        (
            {"extra_args": {"diffusion_algorithm": "entropy_bounded", "diffusion_entropy_bound": 1e-46}},
            "diffusion_entropy_bound=1e-46 .*float32.* it is 0",
        ),
        (
            {"extra_args": {"diffusion_algorithm": "origin", "diffusion_eps": 1e-46}},
            "diffusion_eps=1e-46 .*float32.* it is 0",
        ),
    ],
    ids=str,
)
def test_numbers_that_float32_does_not_have(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        admitted("sdar", SamplingParams(**given))
    with pytest.raises(ValueError, match=r"entropy_bound=1e-46 .*float32"):
        configured(diffusion_config={"entropy_bound": 1e-46})
