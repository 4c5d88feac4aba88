# SPDX-License-Identifier: Apache-2.0
"""A rank that has a share of each row: what a batch gets, and which steps need whole rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.sampling.options import PROMPT, params
from tests.sampling.rig import MASK, VOCABULARY, Request, Rig, numbers_of
from vllm.v1.diffusion.kernels.merge_row_stats import share_numbers
from vllm.v1.diffusion.kernels.row_stats import row_stats
from vllm.v1.diffusion.worker.model_state import DiffusionModelState
from vllm.v1.generation_loop import GenerationLoop
from vllm.v1.generation_loop.guard import GuardedLoop

HALF = 23


class TwoRanks:
    """Both ranks in one process: the sampler is the first, and is given whole rows, not its own."""

    first, width, vocabulary = 0, HALF, VOCABULARY

    def __init__(self) -> None:
        self.shared = self.gathered = 0

    def own(self, share: torch.Tensor) -> torch.Tensor:
        self.whole_rows = share
        return share[:, :HALF]

    def whole(self, share: torch.Tensor) -> torch.Tensor:
        self.gathered += 1
        return share

    def own_id(self, token_id: int) -> int:
        return token_id if token_id < HALF else -1

    def of_all(self, numbers: torch.Tensor) -> torch.Tensor:
        self.shared += 1
        theirs = self.whole_rows[:, HALF:]
        zeros = torch.zeros(len(theirs))
        seeds = zeros.long()
        stats = row_stats(theirs, zeros, zeros + 1, seeds, seeds, None, MASK - HALF)
        return torch.stack([numbers, share_numbers(theirs, stats, HALF)])


class NoGrammars:
    empty = True

    def restrict(self, *_: Any) -> None:
        pass

    revise = restrict


def run(requests: list[Request], shares: TwoRanks | None) -> list[tuple[list[int], list[int], list[float]]]:
    rig = Rig()
    rig.sampler.shares = shares  # type: ignore[assignment]
    rig.sampler.grammars = NoGrammars()  # type: ignore[assignment]
    return [(answer.tokens, answer.steps, answer.confidence) for answer in rig.run(requests, 12)]


@pytest.mark.parametrize(
    "algorithm",
    ["low_confidence_static", "low_confidence_dynamic", "entropy_bounded", "topk_margin", "threshold"],
)
def test_a_greedy_batch_needs_no_whole_rows(algorithm: str) -> None:
    how: dict[str, Any] = {"steps": 2, "algorithm": algorithm, "values": numbers_of(algorithm)}
    requests = [Request(params(temperature=0), PROMPT, key=i, **how) for i in range(3)]
    ranks = TwoRanks()
    for (tokens, steps, confidence), alone in zip(run(requests, ranks), run(requests, None), strict=True):
        assert (tokens, steps) == alone[:2]
        assert any(token >= HALF for token in tokens), "nothing of the other rank's"
        torch.testing.assert_close(torch.tensor(confidence), torch.tensor(alone[2]))
    assert ranks.shared > 0
    assert ranks.gathered == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "seed": 1},
        {"logprobs": 2},
        {"presence_penalty": 1.0},
        {"logit_bias": {3: 5.0}},
        {"allowed_token_ids": [1, 2, 30]},
    ],
)
def test_whole_rows_where_a_request_of_the_step_reads_them(options: dict[str, Any]) -> None:
    """The others of the batch too, so that all ranks do the same."""
    requests = [Request(params(**options), PROMPT, key=1), Request(params(temperature=0), PROMPT, key=2)]
    ranks = TwoRanks()
    assert run(requests, ranks) == run(requests, None)
    assert ranks.gathered > 0
    assert ranks.shared == 0


class Own(GenerationLoop):
    def compute_logits(self, model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, True),
        ({"lora_config": object()}, False),
        ({"parallel_config": SimpleNamespace(enable_batch_sharded_sampling=True)}, False),
    ],
)
def test_a_built_in_loop_leaves_logits_on_their_ranks(changes: dict[str, Any], shares: bool) -> None:
    parallel = SimpleNamespace(enable_batch_sharded_sampling=None)
    config = {"generation_loop": "block_diffusion", "lora_config": None, "parallel_config": parallel}
    state: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(**config | changes), rows=SimpleNamespace(changes_logits=False)
    )
    assert DiffusionModelState._may_share_logits(state) is shares
    state.rows.changes_logits = True
    assert not DiffusionModelState._may_share_logits(state)


def test_a_loop_that_makes_logits_gets_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vllm.v1.diffusion.worker.model_state.get_generation_loop", lambda _: GuardedLoop("own", Own())
    )
    parallel = SimpleNamespace(enable_batch_sharded_sampling=None)
    state: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(lora_config=None, parallel_config=parallel),
        rows=SimpleNamespace(changes_logits=False),
    )
    assert not DiffusionModelState._may_share_logits(state)
