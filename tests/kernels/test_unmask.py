# SPDX-License-Identifier: Apache-2.0
"""unmask: each rule by hand, and mixed random calls against plain Python and the reference."""

import math

import pytest
import torch

from tests.kernels.unmask_cases import MASK, State, one_request, oracle, random_state
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.kernels.unmask import unmask

NAN, INF = math.nan, math.inf


def unmasked(state: State, device: torch.device) -> list[int]:
    """Runs one step of `one_request`; returns the positions it finished."""
    state = state.to(device)
    masked, step = state.masked.clone(), int(state.step[1])
    remaining = unmask(**state.arguments())
    changed = (masked & ~state.masked)[1].nonzero()[:, 0].tolist()
    n = len(state.token)
    assert remaining.tolist() == [int(state.masked[1, :n].sum())]
    assert state.canvas[1, changed].tolist() == state.token[changed].tolist()
    assert state.unmasked_at[1, changed].tolist() == [step] * len(changed)
    rest = [p for p in range(n + 2) if p not in changed]
    assert (state.canvas[1, rest] == MASK).all() and (state.unmasked_at[1, rest] == -1).all()
    assert state.step.tolist() == [step, step + 1, step]
    assert (state.canvas[[0, 2]] == MASK).all() and state.masked[[0, 2]].all()
    return changed


@pytest.mark.parametrize(
    ("rule", "confidence", "options", "expected"),
    [
        (Rule.GIVEN, [0.1, 0.2, 0.3], {"picked": [True, False, True]}, [0, 2]),
        (Rule.GIVEN, [0.1, 0.2, 0.3], {"picked": [False] * 3}, []),
        (Rule.GIVEN, [0.1, 0.2], {"picked": [True, True], "masked": [False, True]}, [1]),
        (Rule.STATIC, [0.1, 0.9, 0.5, 0.8], {"steps": 2}, [1, 3]),
        (Rule.STATIC, [0.1, 0.9, 0.5, 0.8], {"steps": 3, "step": 0}, [1, 3]),  # 4 = 2 + 1 + 1
        (Rule.STATIC, [0.1, 0.9, 0.5, 0.8], {"steps": 3, "step": 1}, [1]),
        (Rule.STATIC, [0.1, 0.9, 0.5, 0.8], {"steps": 8, "step": 7}, [1]),  # never none
        (Rule.STATIC, [0.1, 0.9], {"steps": 1, "block_length": 8}, [0, 1]),  # no more than masked
        (Rule.STATIC, [0.5, 0.5, 0.5], {"steps": 2, "block_length": 4}, [0, 1]),  # ties: lowest
        (Rule.STATIC, [NAN, -INF, 0.0], {"steps": 2, "block_length": 4}, [0, 2]),
        (Rule.STATIC, [0.9, 0.1, 0.2], {"masked": [False, True, True], "steps": 3}, [2]),
        (Rule.DYNAMIC, [0.9, 0.1, 0.8, 0.2], {"threshold": 0.5}, [0, 2]),
        (Rule.DYNAMIC, [0.9, 0.1, 0.8, 0.2], {"threshold": 0.95}, [0]),
        (Rule.DYNAMIC, [0.5, 0.1, 0.5, 0.2], {"threshold": 0.5}, [0]),  # strict
        (Rule.DYNAMIC, [0.9, 0.1, 0.2, 0.3], {"threshold": 0.5, "steps": 2}, [0, 3]),
        (Rule.DYNAMIC, [NAN, NAN], {"threshold": 0.5}, [0]),
        (Rule.SEQUENTIAL, [0.1, 0.9, 0.8, 0.7], {"steps": 2}, [0, 1]),
        (Rule.SEQUENTIAL, [0.1, 0.9, 0.8], {"masked": [False, True, True], "steps": 3}, [1]),
        (Rule.THRESHOLD, [0.5, 0.1, 0.7], {"threshold": 0.5}, [0, 2]),  # not strict
        (Rule.THRESHOLD, [0.2, 0.3, 0.3], {"threshold": 0.5}, [1]),
        # Ranks pass at 1 - f/2, 1 - f/3, 1 - f/4, ...; the first always.
        (Rule.FACTOR, [0.1, 0.9, 0.6, 0.7], {"threshold": 1.0}, [1, 3]),
        (Rule.FACTOR, [0.1, 0.2, 0.3, 0.15], {"threshold": 1.0}, [2]),
        (Rule.FACTOR, [0.9, 0.9, 0.9, 0.9], {"threshold": 1.0}, [0, 1, 2, 3]),
        (Rule.FACTOR, [0.9, 0.1, 0.9, 0.9], {"threshold": 1.0}, [0, 1, 2, 3]),  # the last goes along
        (Rule.FACTOR, [0.335406, 0.282678], {"threshold": 1.0}, [0, 1]),  # as in golden `_f1`
        (Rule.FACTOR, [0.3], {"threshold": 1.0}, [0]),
    ],
)
def test_rules_by_hand(
    device: torch.device,
    rule: Rule,
    confidence: list[float],
    options: dict[str, object],
    expected: list[int],
) -> None:
    assert unmasked(one_request(rule, confidence, **options), device) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entropy", "bound", "expected"),
    [
        ([0.5, 0.1, 0.2, 0.9], 0.4, [1, 2]),  # 0.1, 0.3 < 0.4 <= 0.8
        ([0.5, 0.25, 0.25], 0.25, [1]),  # the first sum is not below the bound: at least one
        ([0.5, 0.25, 0.25], 0.5, [1]),  # 0.25 < 0.5, 0.5 is not
        ([2.0, 3.0], 0.6, [0]),
        ([0.1, 0.1, 0.1], 9.0, [0, 1, 2]),
        ([NAN, 0.1, INF], 9.0, [1]),
        ([0.0, 0.0, 1.0], 0.0, [0]),
    ],
)
def test_entropy_bounded_by_hand(
    device: torch.device, entropy: list[float], bound: float, expected: list[int]
) -> None:
    # Confidences in the opposite order: this rule must not look at them.
    state = one_request(Rule.ENTROPY_BOUNDED, list(entropy), entropy=entropy, threshold=bound)
    assert unmasked(state, device) == expected


def test_nothing_masked_changes_nothing(device: torch.device) -> None:
    state = one_request(Rule.STATIC, [0.5, 0.6], masked=[False, False]).to(device)
    before = state.clone()
    assert unmask(**state.arguments()).tolist() == [0]
    assert torch.equal(state.step, before.step) and torch.equal(state.canvas, before.canvas)


def test_no_requests_and_empty_requests(device: torch.device) -> None:
    state = one_request(Rule.STATIC, [0.5, 0.6])
    state.slots = torch.tensor([], dtype=torch.int64)
    state.row_start = torch.tensor([0], dtype=torch.int32)
    assert unmask(**state.to(device).arguments()).shape == (0,)
    state.slots = torch.tensor([2, 0])
    state.row_start = torch.tensor([1, 1, 1], dtype=torch.int32)
    assert unmask(**state.to(device).arguments()).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(60))
def test_mixed_calls(device: torch.device, seed: int) -> None:
    """Kernel, PyTorch reference and plain Python leave the same state; whatever is left ends."""
    state = random_state(seed)
    by_python, by_torch = state.clone(), state.clone()
    kernel = state.to(device)
    expected = oracle(by_python)
    assert reference.unmask(**by_torch.arguments()).tolist() == expected
    assert unmask(**kernel.arguments()).tolist() == expected
    for name, value in by_python.arguments().items():
        for other in (by_torch, kernel):
            assert torch.equal(getattr(other, name).cpu().nan_to_num(), value.nan_to_num()), name


@pytest.mark.parametrize("seed", range(6))
def test_every_rule_but_given_comes_to_an_end(device: torch.device, seed: int) -> None:
    state = random_state(1000 + seed, rules=[1, 2, 3, 4, 5, 6], width=33, requests=6).to(device)
    remaining = [34] * 6
    while any(remaining):
        left = unmask(**state.arguments()).tolist()
        assert all(a < b or a == b == 0 for a, b in zip(left, remaining, strict=True))
        remaining = left


@pytest.mark.parametrize("width", [1024, 1025, 4096])
@pytest.mark.parametrize("rule", list(Rule))
def test_wide_canvases(device: torch.device, rule: Rule, width: int) -> None:
    state = random_state(7, rules=[int(rule)], width=width, requests=5)
    state.masked[:] = True
    expected = oracle(by_python := state.clone())
    kernel = state.to(device)
    assert unmask(**kernel.arguments()).tolist() == expected
    assert torch.equal(kernel.canvas.cpu(), by_python.canvas)


def test_many_requests(device: torch.device) -> None:
    state = random_state(11, width=8, requests=700)
    expected = oracle(by_python := state.clone())
    kernel = state.to(device)
    assert unmask(**kernel.arguments()).tolist() == expected
    assert torch.equal(kernel.canvas.cpu(), by_python.canvas)
    assert torch.equal(kernel.step.cpu(), by_python.step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": torch.zeros(3, dtype=torch.int32)}, "token has the wrong dtype"),
        ({"confidence": torch.zeros(4)}, "confidence must have 3 entries"),
        ({"masked": torch.ones(3, 4, dtype=torch.bool)}, r"masked must be \[3, 5\]"),
        ({"canvas": torch.zeros(3, 4097, dtype=torch.int64)}, "4096 positions wide, not 4097"),
        ({"row_start": torch.tensor([0, 4], dtype=torch.int32)}, "past the rows"),
        ({"row_start": torch.tensor([2, 1], dtype=torch.int32)}, "must not decrease"),
        ({"row_start": torch.tensor([-1, 1], dtype=torch.int32)}, "must not be negative"),
        ({"slots": torch.tensor([3])}, "slot is out of range"),
        ({"slots": torch.tensor([-1])}, "slot is out of range"),
        ({"rule": torch.full((3,), 7, dtype=torch.int32)}, "none of the known ones"),
        ({"rule": torch.zeros(3, dtype=torch.int32)}, "GIVEN needs `picked`"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    state = one_request(Rule.STATIC, [0.1, 0.2, 0.3])
    with pytest.raises(RuntimeError, match=message):
        unmask(**{**state.arguments(), **change})
