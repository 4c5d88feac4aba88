# SPDX-License-Identifier: Apache-2.0
"""What a step might have written at each open position, against the model's logits in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.sampling.options import PROMPT, params
from tests.sampling.rig import MASK, VOCABULARY, Request, Rig, model
from vllm.v1.diffusion.message.candidates import CODES, step_candidates
from vllm.v1.diffusion.sampling import step_logits

ASKED = (3, 0, VOCABULARY, 1)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1, "repetition_penalty": 1.5, "top_k": 2},
    {"temperature": 1.0, "seed": 2, "logit_bias": {7: 3.0}},
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("rows_a_part", [1, 1 << 20])
def test_as_the_model_says(aligned: bool, rows_a_part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each request its own, whatever its parameters make of the logits; none where nobody asks."""
    monkeypatch.setattr(step_logits, "MOST_BYTES", 4 * VOCABULARY * rows_a_part)
    rig = Rig(aligned=aligned)
    for key, (count, options) in enumerate(zip(ASKED, OPTIONS, strict=True)):
        rig.add(Request(params(**options), PROMPT[: 5 + key], key, more={"candidates": count}))
    seen = 0
    for _ in range(6):
        before = [
            (
                request,
                rig.canvases.masked[slot].clone(),
                int(rig.canvases.start[slot]),
                int(rig.requests.total_len.gpu[slot]),
                int(rig.canvases.step[slot]),
            )
            for slot, request, _ in rig.live.values()
        ]
        trace = rig.step().unmask_trace.numpy()
        assert trace.shape[2] == CODES + 2 * VOCABULARY
        for (request, masked, start, known, step), rows in zip(before, trace, strict=True):
            count = request.more["candidates"]
            found = step_candidates(rows, step, count or 1)
            opened = {start + i for i in masked.nonzero()[:, 0].tolist()} if count else set()
            assert {known + column for column in found} == opened
            for column, candidates in found.items():
                seen += 1
                scores = model(request.key, known + column, step).double().log_softmax(-1)
                scores[MASK] = -torch.inf
                best = scores.topk(min(count, VOCABULARY - 1))
                assert candidates.step == step
                assert candidates.ids == best.indices.tolist()
                assert candidates.logprobs == pytest.approx(best.values.tolist(), abs=1e-5)
    assert seen > 20


def test_nothing_where_nobody_asks() -> None:
    rig = Rig()
    rig.add(Request(params(), PROMPT))
    assert rig.step().unmask_trace.shape[2] == 3
    name = rig.add(replace(Request(params(), PROMPT), more={"candidates": 2}))
    assert rig.step().unmask_trace.shape[2] == CODES + 4
    rig.remove(name)
    assert rig.step().unmask_trace.shape[2] == 3


def test_a_token_that_may_not_stand_is_no_candidate() -> None:
    rows = np.full((2, CODES + 4), np.nan, dtype=np.float32)
    rows[1, CODES:] = 7, 8, -0.25, -np.inf
    (column,) = (found := step_candidates(rows, 3, 2))
    assert (column, found[column].ids, found[column].logprobs) == (1, [7], [-0.25])
