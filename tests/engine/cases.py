# SPDX-License-Identifier: Apache-2.0
"""Requests as data, so that they can be run in any engine and by the reference."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.reference.sdar import Decoded, SdarReference

GOLDEN_SDAR = Path(__file__).parent.parent / "golden" / "sdar"
VOCABULARY = 480  # Ids below it are ordinary tokens of the golden checkpoint.

LENGTHS = (1, 7, 33, 130, 600)
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "low_confidence_static"},
    {"algorithm": "low_confidence_static", "steps": 3},
    {"algorithm": "low_confidence_dynamic", "threshold": 0.4},
    {"algorithm": "low_confidence_dynamic", "threshold": 0.7, "steps": 2},
    {"algorithm": "sequential", "steps": 4},
    {"algorithm": "entropy_bounded", "entropy_bound": 1.5},
]


@dataclass(frozen=True)
class Case:
    """One greedy request."""

    prompt: tuple[int, ...]
    max_tokens: int
    algorithm: str
    block_length: int | None
    steps: int | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    alg_temperature: float | None = None
    eps: float | None = None
    cache: str | None = None
    confidence_eos_eot_inf: bool | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    edit_threshold: float | None = None
    max_post_steps: int | None = None
    low_threshold: float | None = None
    max_steps: int | None = None
    exit_threshold: float | None = None
    eos_early_stop: bool | None = None
    own: tuple[tuple[str, float], ...] = ()
    """Parameters of an algorithm's own, with their prefix."""
    likelihood: str | None = None
    """The estimator of the prompt's log probabilities, if they are asked for."""
    template: tuple[int, ...] | None = None
    """The answer's tokens that are given, -1 for the others."""
    logprobs: int | None = None

    def sampling_params(self) -> Any:
        """As ``LLM.generate`` wants it, with a trace."""
        from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            max_tokens=self.max_tokens,
            ignore_eos=not self.stop_token_ids,
            stop_token_ids=list(self.stop_token_ids),
            prompt_logprobs=None if self.likelihood is None else 0,
            logprobs=self.logprobs,
            detokenize=False,
            extra_args=DiffusionParams(
                **self._canvas(),
                algorithm=self.algorithm,
                block_length=self.block_length,
                steps=self.steps,
                threshold=self.threshold,
                factor=self.factor,
                entropy_bound=self.entropy_bound,
                alg_temperature=self.alg_temperature,
                eps=self.eps,
                cache=self.cache,
                confidence_eos_eot_inf=self.confidence_eos_eot_inf,
                edit_threshold=self.edit_threshold,
                max_post_steps=self.max_post_steps,
                low_threshold=self.low_threshold,
                max_steps=self.max_steps,
                exit_threshold=self.exit_threshold,
                eos_early_stop=self.eos_early_stop,
                trace=True,
                likelihood=self.likelihood,
            ).to_extra_args()
            | dict(self.own),
        )

    def _canvas(self) -> dict[str, Any]:
        if self.template is None:
            return {}
        pinned = [i for i, token in enumerate(self.template) if token >= 0]
        # Where nothing is pinned, whatever id stands there is no matter.
        return {"seed_canvas": [max(token, 0) for token in self.template], "pinned": pinned}


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request; its parameters are the published code's."""
    params = case["params"]
    algorithm = params["remasking_strategy"]
    bounded = algorithm == "entropy_bounded"
    return Case(
        prompt=tuple(case["prompt_ids"]),
        max_tokens=params["gen_length"],
        algorithm=algorithm,
        block_length=params["block_length"],
        steps=None if bounded else params["denoising_steps"],
        threshold=params["confidence_threshold"] if "dynamic" in algorithm else None,
        entropy_bound=params["eb_threshold"] if bounded else None,
        temperature=params["temperature"],
        top_k=params["top_k"],
        stop_token_ids=tuple(params["stopping_criteria_idx"] or ()),
    )


def random_prompt(length: int, seed: int) -> tuple[int, ...]:
    """Ordinary tokens of the golden checkpoint."""
    rng = random.Random(1000 * seed + length)
    return tuple(rng.randrange(VOCABULARY) for _ in range(length))


@cache
def reference() -> SdarReference:
    """The golden checkpoint in the plain reference."""
    return SdarReference(GOLDEN_SDAR)


@cache
def expected(case: Case) -> Decoded:
    """What the reference generates for a greedy request."""
    assert case.temperature == 0
    assert case.block_length is not None
    return reference().generate(
        list(case.prompt),
        case.max_tokens,
        case.block_length,
        case.steps or case.block_length,
        case.algorithm,
        0.85 if case.threshold is None else case.threshold,
        case.entropy_bound or 0.35,
        case.stop_token_ids,
    )


def mixed_batch() -> list[Case]:
    """16 requests of all lengths, block lengths and algorithms."""
    rng = random.Random(7)
    return [
        Case(
            random_prompt(LENGTHS[i % 5], 2 + i),
            rng.choice((1, 5, 16, 21, 30)),
            block_length=(4, 8, 16)[i % 3],
            **ALGORITHMS[i % 6],
        )
        for i in range(16)
    ]


def run(llm: Any, cases: list[Case]) -> list[dict[str, Any]]:
    """Runs requests in one batch; see ``conftest.run_elsewhere``."""
    outputs = llm.generate(
        [{"prompt_token_ids": list(c.prompt)} for c in cases],
        [c.sampling_params() for c in cases],
        use_tqdm=False,
    )
    results = []
    for output in outputs:
        completion = output.outputs[0]
        report = completion.diffusion
        trace = report.trace or () if report else ()
        results.append(
            {
                "token_ids": list(completion.token_ids),
                "steps": report.steps if report else None,
                "steps_per_block": report.steps_per_block if report else None,
                "unmask_steps": [step for step, _ in trace],
                "probabilities": [p for _, p in trace],
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
                "cached": output.num_cached_tokens,
                "logprobs": [
                    entry[token].logprob
                    for token, entry in zip(completion.token_ids, completion.logprobs or (), strict=False)
                ],
                "scores": [
                    next(iter(entry.values())).logprob for entry in (output.prompt_logprobs or ())[1:]
                ],
            }
        )
    return results


def assert_as_reference(results: list[dict[str, Any]], cases: list[Case]) -> None:
    """Every request must equal the reference, token for token and step for step."""
    for result, case in zip(results, cases, strict=True):
        want = expected(case)
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def forced(llm: Any, token: int, **params: Any) -> list[int]:
    """What a request of 20 tokens returns where the model says the same token over and over."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=20, detokenize=False, logit_bias={token: 100.0}, **params)
    (output,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, how, use_tqdm=False)
    ids = list(output.outputs[0].token_ids)
    assert output.outputs[0].finish_reason == ("length" if len(ids) == 20 else "stop")
    return ids
