# SPDX-License-Identifier: Apache-2.0
"""When requests have ended, the canvases and the sampler are as in a fresh worker."""

from __future__ import annotations

import pytest

from tests.sampling.held import differences, held_by
from tests.sampling.options import FEATURES, OPTIONS, PROMPT, params
from tests.sampling.rig import MASK, MAX_LENGTH, Request, Rig, numbers_of
from vllm.v1.diffusion.policies.registry import built_in_policies


def mixture() -> list[Request]:
    """Every parameter, policy and feature, with and without log probabilities."""
    requests = [
        Request(params(logprobs=2, **OPTIONS["bad_words"], **OPTIONS["bias"]), PROMPT, block_length=4),
        Request(params(temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, seed=3), PROMPT[:3], block_length=8),
        Request(params(logprobs=5, **OPTIONS["repetition"], **OPTIONS["min_tokens"]), PROMPT[:5]),
    ]
    for name in built_in_policies():
        values = numbers_of(name)
        requests.append(
            Request(params(), PROMPT, algorithm=name, threshold=0.4, values=values, block_length=8)
        )
    return [*requests, *(Request(params(), PROMPT, more=more) for more in FEATURES.values())]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("aborted", [False, True])
def test_after_a_mixture(aligned: bool, aborted: bool) -> None:
    fresh, used = (Rig(aligned, num_slots=6) for _ in range(2))
    requests = mixture()
    while requests:
        some, requests = requests[:6], requests[6:]
        if aborted:
            names = [used.add(request) for request in some]
            used.step()
            for name in names:
                used.remove(name)
        else:
            used.run(some, 8)
    # What is on the device is cleared with the next step.
    used.canvases.apply_added(used.requests)
    for part in ("canvases", "sampler"):
        before, after = held_by(getattr(fresh, part)), held_by(getattr(used, part))
        assert len(before) > 10 and not differences(before, after)


def test_a_request_that_ends_before_its_first_step_leaves_nothing() -> None:
    rig = Rig()
    rig.canvases.add(
        3,
        Request(params(), PROMPT, more=FEATURES["template"]).decoding(),
        rig.blocks.grid(4, len(PROMPT), MAX_LENGTH),
        len(PROMPT),
    )
    assert differences(held_by(Rig().canvases), held_by(rig.canvases))
    rig.canvases.remove(3)
    rig.canvases.apply_added(rig.requests)
    assert not differences(held_by(Rig().canvases), held_by(rig.canvases))


def test_what_others_hold_stays() -> None:
    """One of two requests of a policy with a memory ends; the other's is not touched."""
    rig, alone = Rig(), Rig()
    request = Request(params(), PROMPT, algorithm="credit", threshold=0.99, block_length=8, key=7)
    names = [rig.add(request), rig.add(Request(params(), PROMPT, algorithm="credit", threshold=0.99, key=8))]
    kept = alone.add(request)
    for i in range(6):
        rig.step()
        alone.step()
        if i == 1:
            rig.remove(names[1])
    assert rig.live[names[0]][2] == alone.live[kept][2]
    assert MASK not in rig.live[names[0]][2].tokens
