# SPDX-License-Identifier: Apache-2.0
"""The sampler with several open blocks of a request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sampling.options import OPTIONS, params
from tests.sampling.rig import Answer, Request, Rig
from vllm.v1.diffusion.modes import MULTI_BLOCK
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.parts.multi_block import MOST_OPEN_BLOCKS

DEFAULTS = {n: p.default for n, p in get_policy("multi_block").numbers.items() if p.default is not None}
PROMPT = [1, 2, 3]
TOKENS = 24


def request(length: int = 2, threshold: float = 0.5, open_blocks: int = 4, **options: Any) -> Request:
    own = {**DEFAULTS, "open_blocks": open_blocks, "add_block_threshold": 0.1}
    more: dict[str, Any] = {
        "algorithm": "multi_block",
        "block_length": length,
        "threshold": threshold,
        "values": own,
    }
    return Request(params(**options), PROMPT, **more)


def run(requests: list[Request]) -> list[Answer]:
    return Rig(kind=MULTI_BLOCK).run(requests, TOKENS)


def test_a_canvas_is_as_wide_as_all_blocks_that_may_be_open() -> None:
    assert MULTI_BLOCK.blocks.open_blocks == MOST_OPEN_BLOCKS


def test_alone_and_in_a_batch() -> None:
    """Block lengths, numbers of open blocks and other policies beside each other change no token."""
    requests = [
        request(),
        request(threshold=0.2, logprobs=2),
        request(1, temperature=1.0, seed=3),
        request(2, open_blocks=2),
        request(open_blocks=1),
        Request(params(), PROMPT, algorithm="low_confidence_dynamic", steps=2, block_length=2),
        Request(params(), PROMPT, block_length=2),
    ]
    alone = [run([one])[0] for one in requests]
    for answer, beside in zip(alone, Rig(kind=MULTI_BLOCK, num_slots=8).run(requests, TOKENS), strict=True):
        assert answer.tokens == beside.tokens
    # One open block is that policy, step for step.
    assert alone[4].tokens == alone[5].tokens and alone[4].steps == alone[5].steps
    assert alone[0].tokens != alone[4].tokens
    # Blocks behind the first are unmasked before it leaves.
    assert any(later <= alone[0].steps[i] for i, later in enumerate(alone[0].steps[2:]))
    own = [ids[0] for ids, _, _ in alone[1].logprobs]
    assert own == alone[1].tokens and len(own) == len(alone[1].confidence)


@pytest.mark.parametrize("name", ["bad_words", "min_tokens", "bias", "repetition"])
def test_options(name: str) -> None:
    """Every block ends, and what is forbidden is not written, in blocks that fill in any order."""
    (answer,) = run([request(threshold=0.1, **OPTIONS[name])])
    for word in OPTIONS["bad_words"]["bad_words"] if name == "bad_words" else ():
        found = [answer.tokens[i : i + len(word)] for i in range(len(answer.tokens))]
        assert word not in found
    assert len(answer.tokens) >= TOKENS
