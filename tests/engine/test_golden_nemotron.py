# SPDX-License-Identifier: Apache-2.0
"""Nemotron-Labs-Diffusion: its card's code, and vLLM's, gave these ids; one engine must give the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.cases import random_prompt
from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import altered_configuration, cases_of, generate
from tests.engine.watching import watch
from tests.reference.nemotron import NemotronReference

FOLDER = GOLDEN / "nemotron_labs_diffusion"
KINDS = {"diffusion": "cases", "writing": "cases_ar", "drafts": "cases_linear_spec", "vllm": "cases_vllm"}
CASES = [(kind, case) for kind, name in KINDS.items() for case in cases_of(FOLDER, name)]
REFERENCE = NemotronReference(FOLDER)
SELECTION = {
    "confidence_threshold": "threshold",
    "low_confidence": "low_confidence_static",
    "leftmost": "sequential",
}
"""vLLM's names of its selection policies, and ours."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def nemotron() -> Iterator[Any]:
    """One engine for all modes, whose blocks may have 64 tokens."""
    yield from started(
        model=str(FOLDER),
        diffusion_config={"block_length": 64},
        max_num_batched_tokens=160,
        enable_prefix_caching=True,
    )


def asked(max_tokens: int, stop: tuple[int, ...] = (), temperature: float = 0.0, **own: Any) -> Any:
    """A request's parameters; those of diffusion without their prefix."""
    from vllm import SamplingParams

    own = {"trace": None if own.get("mode") == "self_speculation" else True} | own
    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        ignore_eos=True,
        stop_token_ids=list(stop),
        detokenize=False,
        extra_args={f"diffusion_{name}": value for name, value in own.items() if value is not None},
    )


def of_golden(kind: str, case: dict[str, Any]) -> Any:
    """A golden case as a request; its parameters are the published code's."""
    given = case["params"]
    own: dict[str, Any] = {}
    if kind == "diffusion":
        own["block_length"], own["threshold"] = given["block_length"], given["threshold"]
        own["algorithm"] = "low_confidence_static" if given["threshold"] is None else None
        own["causal_context"] = given["causal_context"]
    elif kind == "writing":
        own["mode"] = "autoregressive"
    elif kind == "drafts":
        own |= {"mode": "self_speculation", "threshold": given["threshold"]}
        own["block_length"] = given["block_length"]
    else:
        policy, steps = given["selection_policy"], given["max_denoising_steps"]
        own |= {"seed_token": False, "algorithm": SELECTION[policy], "block_length": given["canvas_length"]}
        if policy == "confidence_threshold":
            own |= {"threshold": given["confidence_threshold"], "max_steps": steps}
        else:
            own["steps"] = steps
    if given.get("max_thinking_tokens") is not None:
        own["max_thinking_tokens"] = given["max_thinking_tokens"]
        own["end_think_token_id"] = given["end_think_token_id"]
    length = given.get("max_new_tokens", given.get("max_tokens"))
    return asked(length, (given["eos_token_id"],), **own)


def check(completion: Any, kind: str, case: dict[str, Any]) -> None:
    """Ids, passes, and the passes that unmasked them, are the published ones."""
    length = len(completion.token_ids)
    given, detail = case["params"], case.get("num_forward_detail") or {}
    passes = completion.diffusion.steps
    if kind == "drafts" and given["max_thinking_tokens"] is not None:
        # The published code never writes the end of the thinking: a mistake of its own.
        want = REFERENCE.write(
            case["prompt_ids"], length, given["max_thinking_tokens"], given["end_think_token_id"]
        )
        assert list(completion.token_ids) == want, case["name"]
        return
    # Verified drafts may be longer than was asked for.
    limit = given.get("max_new_tokens", given.get("max_tokens"))
    assert list(completion.token_ids) == case["output_ids"][:limit], case["name"]
    seeded = kind == "diffusion" and given["causal_context"]
    # Without seeds only passes that denoise are counted.
    want_passes = case["num_forward"] if seeded or kind in ("writing", "drafts") else detail["denoise"]
    assert passes == want_passes, case["name"]
    if kind in ("writing", "drafts"):
        return
    found = [step for step, _ in completion.diffusion.trace]
    if seeded:
        # Here the pass that makes a seed is one of the request's.
        block = given["block_length"]
        found = [-1 if i % block == 0 else step - 1 - i // block for i, step in enumerate(found)]
        forced = [i for i, step in enumerate(case["unmask_step"]) if step < 0 and i % block]
        found = [-1 if i in forced else step for i, step in enumerate(found)]
    assert found == case["unmask_step"][:length], case["name"]


@pytest.mark.parametrize(("kind", "case"), CASES, ids=lambda x: x if isinstance(x, str) else x["name"])
def test_alone(nemotron: Any, kind: str, case: dict[str, Any]) -> None:
    (completion,) = generate(nemotron, [(case["prompt_ids"], of_golden(kind, case))])
    check(completion, kind, case)


def test_all_modes_in_one_batch(nemotron: Any) -> None:
    """Each repeated, so that prefixes of one mode's requests are read by others'."""
    twice = CASES + CASES[::-1]
    completions = generate(nemotron, [(case["prompt_ids"], of_golden(kind, case)) for kind, case in twice])
    for completion, (kind, case) in zip(completions, twice, strict=True):
        check(completion, kind, case)


def test_first_forward() -> None:
    """The reference's network is the published one."""
    first = np.load(FOLDER / "first_forward_logits.npz")
    for name in ("p33_g64_b32_t09", "p1_g32_b8_t09", "p7_g64_b16_t09_stop"):
        case = next(case for _, case in CASES if case["name"] == name)
        prompt, length = case["prompt_ids"], case["params"]["block_length"]
        causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
        last = REFERENCE.under(prompt, causal)[-1]
        assert torch.allclose(last, torch.from_numpy(first[name + ".prefill_last"]), atol=1e-4)
        block = REFERENCE._block(prompt, [int(last.argmax())] + [100] * (length - 1))
        assert torch.allclose(block, torch.from_numpy(first[name + ".denoise"]), atol=1e-4)


def test_drafts_are_verified_as_often_as_in_the_published_code(nemotron: Any) -> None:
    for kind, case in CASES:
        if kind != "drafts" or not case["equals_ar"]:
            continue
        (completion,) = generate(nemotron, [(case["prompt_ids"], of_golden(kind, case))])
        passes = completion.diffusion.steps_per_block
        assert len(passes) == len(case["accepted"])
        assert sum(passes) == sum(case["num_forward_detail"][name] for name in ("draft", "verify"))


def test_long_prompts_in_chunks_and_from_the_cache(nemotron: Any) -> None:
    """A prompt longer than a step; the same prefix is then read by every mode."""
    prompt = list(random_prompt(300, 4))
    block: dict[str, Any] = {"block_length": 8, "threshold": 0.4}
    requests = [
        (prompt, asked(20, **block)),
        (prompt[:270], asked(12, mode="autoregressive")),
        (prompt[:290], asked(17, mode="self_speculation", **block)),
        (prompt, asked(16, seed_token=False, **block)),
    ]
    want = [
        REFERENCE.denoise(prompt, 20, 8, 0.4).output_ids,
        REFERENCE.write(prompt[:270], 12),
        REFERENCE.write(prompt[:290], 17),
        REFERENCE.denoise(prompt, 16, 8, 0.4, seeded=False).output_ids,
    ]
    for _ in range(2):
        assert [list(c.token_ids) for c in generate(nemotron, requests)] == want
    for request, ids in zip(requests, want, strict=True):
        assert list(generate(nemotron, [request])[0].token_ids) == ids


def test_where_the_context_ends(nemotron: Any) -> None:
    """Blocks and drafts end with it; nothing is written behind it."""
    prompt = list(random_prompt(1024 - 21, 6))
    ways: list[dict[str, Any]] = [
        {"block_length": 16, "threshold": 0.3},
        {"mode": "autoregressive"},
        {"mode": "self_speculation", "block_length": 16},
        {"seed_token": False, "block_length": 16, "threshold": 0.3},
    ]
    completions = generate(nemotron, [(prompt, asked(64, **way)) for way in ways])
    assert [len(c.token_ids) for c in completions] == [21] * 4
    assert [c.finish_reason for c in completions] == ["length"] * 4
    assert completions[1].token_ids == completions[2].token_ids == REFERENCE.write(prompt, 21)


def test_drawn_tokens(nemotron: Any) -> None:
    """The same seed gives the same tokens, in every mode and whatever shares the batch."""
    prompt = list(random_prompt(21, 7))
    for way in ({}, {"mode": "autoregressive"}, {"mode": "self_speculation"}, {"seed_token": False}):
        how = [asked(24, temperature=1.0, block_length=None, **way) for _ in range(3)]
        for one, seed in zip(how, (5, 5, 6), strict=True):
            one.seed = seed
        one, same, other = (list(c.token_ids) for c in generate(nemotron, [(prompt, h) for h in how]))
        assert one == same != other
        assert list(generate(nemotron, [(prompt, how[0])])[0].token_ids) == one


def test_a_grammar_is_kept(nemotron: Any) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    for way in ({"block_length": 8}, {"mode": "autoregressive"}):
        how = asked(16, **way)
        how.detokenize, how.ignore_eos = True, False
        how.structured_outputs = StructuredOutputsParams(regex="(t201|t202)(t203){3}")
        (completion,) = generate(nemotron, [([1, 231, 237], how)])
        assert list(completion.token_ids)[1:4] == [203] * 3


@pytest.mark.parametrize(
    ("own", "params", "message"),
    [
        ({"mode": "fast"}, {}, "diffusion_mode='fast' must be one of diffusion, autoregressive"),
        ({"mode": "autoregressive", "threshold": 0.5}, {}, "diffusion_threshold=0.5 has no effect with"),
        ({"mode": "autoregressive", "causal_context": False}, {}, "diffusion_causal_context=False has no"),
        ({"mode": "self_speculation", "steps": 3}, {}, "diffusion_steps=3 has no effect with"),
        ({"mode": "self_speculation"}, {"logprobs": 1}, "logprobs=1 is not supported with diffusion_mode"),
        ({"mode": "self_speculation"}, {"min_tokens": 4}, "min_tokens=4 is not supported with"),
        ({"causal_context": False, "seed_token": True}, {}, "diffusion_seed_token=True needs a causal"),
        ({"end_think_token_id": 13}, {}, "has no effect without diffusion_max_thinking_tokens"),
        (
            {"max_thinking_tokens": 3, "end_think_token_id": 512},
            {},
            "diffusion_end_think_token_id=512 must be below 512",
        ),
        ({"block_length": 65}, {}, "diffusion_block_length=65 must not exceed the served block length, 64"),
    ],
)
def test_refused(nemotron: Any, own: dict[str, Any], params: dict[str, Any], message: str) -> None:
    how = asked(8, **{"trace": None} | own)
    for name, value in params.items():
        setattr(how, name, value)
    with pytest.raises(ValueError, match=message):
        generate(nemotron, [([1, 2, 3], how)])


def test_a_prompt_that_sees_itself_fits_into_a_step(nemotron: Any) -> None:
    with pytest.raises(ValueError, match="causal_context=False is not supported for a prompt of 161"):
        generate(nemotron, [(list(random_prompt(161, 1)), asked(8, causal_context=False))])


@pytest.mark.parametrize(
    ("members", "mode"),
    [
        ({}, "diffusion"),
        ({"ar_mode": True}, "autoregressive"),
        ({"architectures": ["NemotronLabsDiffusionForCausalLM"]}, "autoregressive"),
    ],
)
def test_the_file_says_which_mode(tmp_path: Path, members: dict[str, Any], mode: str) -> None:
    config = altered_configuration(FOLDER, tmp_path, **members)
    assert config.diffusion_config.mode == mode
    assert config.generation_loop == "seeded_block_diffusion"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"dlm_paradigm": "block_diff"},
            'dlm_paradigm="block_diff", of which the family knows "bidirectional"',
        ),
        ({"attention_bias": True}, "attention_bias=true, of which the family knows null or false"),
        ({"sliding_window": 128}, "sliding_window=128, of which the family knows null only"),
        ({"attention_sinks": 4}, "attention_sinks=4 is not known"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "twist": 2}},
            "twist=2 is not known",
        ),
    ],
)
def test_refused_configurations(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        altered_configuration(FOLDER, tmp_path, **members)


def test_async_scheduling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="async_scheduling=True is not supported with a causal context"):
        altered_configuration(FOLDER, tmp_path, {"async_scheduling": True})


def test_other_families_have_no_modes() -> None:
    from vllm import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.request.resolve import resolve_decoding

    own: dict[str, Any] = {"threshold": 0.5}
    config = MaskedDiffusionConfig(block_length=4, algorithm="threshold", mask_token_id=9, **own)
    how = SamplingParams(extra_args={"diffusion_mode": "autoregressive"})
    with pytest.raises(ValueError, match="diffusion_mode='autoregressive' has no effect on this model"):
        resolve_decoding(how, config)


@pytest.mark.parametrize("own", [{}, {"seed_token": False}, {"mode": "autoregressive"}])
def test_open_blocks_are_watched(nemotron: Any, own: dict[str, Any]) -> None:
    """With seeds, without, and where a block is one token."""
    seen = watch(nemotron, [5, 6, 7, 8, 9], asked(24, **own))
    tokens = [token for delta in seen.deltas for token in delta]
    last = {c.begin + i: token for c in seen.canvases for i, token in enumerate(c.tokens)}
    assert [last[i] for i in range(24)] == tokens
    assert seen.canvases[-1].open == []
