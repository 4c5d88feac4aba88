# SPDX-License-Identifier: Apache-2.0
"""The memory profile takes at least as much as a step, whatever the step's requests ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.sampling import rig
from tests.sampling.features import CASES, request
from tests.sampling.peak import Peak
from tests.sampling.rig import WIDTH, Rig
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.memory import size_of
from vllm.v1.diffusion.sampling import logits, sampler, step_logits
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

VOCABULARY = 6000
ROW = 4 * VOCABULARY
SMALL = 40_000
"""Bytes of what does not grow with the vocabulary."""


def kept(case: str, slots: int) -> int:
    """Bytes that a case's policy remembers, and of a copy of them: counted apart, as ``MOST_MEMORY``."""
    policy = get_policy(CASES[case].get("algorithm", "threshold"))
    return 2 * size_of(policy.make_memory(slots, WIDTH, torch.device("cpu")))


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
@pytest.mark.parametrize("rows_at_once", [8, 10_000])
def test_no_step_takes_more(mode: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "VOCABULARY", VOCABULARY)
    monkeypatch.setattr(step_logits, "MOST_BYTES", rows_at_once * ROW)
    monkeypatch.setattr(logits, "apply_top_k_top_p", apply_top_k_top_p_pytorch)
    for name in ("MOST_MEMORY", "MOST_TEMPORARY"):  # Asked of policies alone.
        monkeypatch.setattr(sampler, name, 0)
    slots = 6
    profiled, raw = Rig(mode=mode, num_slots=slots).sampler, torch.zeros(slots * WIDTH, VOCABULARY)
    with Peak() as rehearsed:
        profiled.rehearse(raw)
    at_least = min(rows_at_once, slots * WIDTH) * ROW
    assert rehearsed.most > 4 * at_least
    taken = {}
    for name, case in CASES.items():
        one = Rig(mode=mode, num_slots=slots)
        for i in range(slots):
            one.add(request(case if i != 1 else {}, 2 * i))
        call = one.sampler.__call__
        peaks: list[int] = []

        def watched(*args: Any, call: Any = call, peaks: list[int] = peaks) -> Any:
            with Peak() as peak:
                output = call(*args)
            peaks.append(peak.most)
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(one.sampler), "__call__", lambda _, *args, watched=watched: watched(*args))
            for _ in range(3):
                one.step()
        taken[name] = max(peaks)
    too_much = {
        name: peak for name, peak in taken.items() if peak > rehearsed.most + SMALL + kept(name, slots)
    }
    assert not too_much, rehearsed.most
    assert taken["filters"] > taken["none"] + at_least
