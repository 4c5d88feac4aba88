# SPDX-License-Identifier: Apache-2.0
"""Log probabilities, ranks, masks and counts of rows of logits, against float64."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.runner_v2.batches import random_batch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.logprob import (
    LogprobTokenIdsState,
    compute_token_logprobs,
    compute_topk_scores,
)
from vllm.v1.worker.gpu.sample.output import SamplingMaskTensors
from vllm.v1.worker.gpu.sample.prompt_logprob import get_prompt_logprobs_token_ids

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(count: Any, vocabulary: Any, dtype: Any, scale: Any = 5.0) -> Any:
    made = scale * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(count))
    return made.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [3, 1024, 4099])
@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0])
def test_logprobs(dtype: Any, vocabulary: int, scale: float) -> None:
    logits = rows(6, vocabulary, dtype, scale)
    logits[2, 1:] = -torch.inf
    ids = torch.randint(0, vocabulary, (6, 9))
    ids[2, 0] = 0
    want = logits.double().log_softmax(-1).gather(-1, ids)
    got = compute_token_logprobs(logits, ids)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    assert got[2, 0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_count_ties(dtype: Any) -> None:
    logits = rows(6, 3001, dtype)
    chosen = torch.randint(0, 3001, (6,))
    scores = compute_topk_scores(logits, 4, chosen)
    for row, token in enumerate(chosen):
        assert scores.selected_token_ranks[row] == (logits[row] >= logits[row, token]).sum()
    assert scores.logprob_token_ids[:, 0].equal(chosen)


def test_ids_of_ones_own() -> None:
    """A request's own ids stand in the place of the most likely ones."""
    state = LogprobTokenIdsState(5, torch.device("cpu"))
    for slot in range(5):
        state.add_request(slot, SamplingParams())
    state.add_request(3, SamplingParams(logprob_token_ids=[40, 2, 7]))
    state.apply_staged_writes()
    logits, chosen, slots = rows(3, 50, torch.float32), torch.tensor([1, 2, 3]), [0, 3, 4]
    got = compute_topk_scores(
        logits,
        2,
        chosen,
        logprob_token_ids_state=state,
        expanded_idx_mapping=torch.tensor(slots),
        max_per_req_token_ids=3,
    )
    exact = logits.double().log_softmax(-1)
    for row, slot in enumerate(slots):
        ids = [40, 2, 7] if slot == 3 else logits[row].topk(2).indices.tolist()
        ids = [chosen[row].item(), *ids]
        assert got.logprob_token_ids[row, : len(ids)].tolist() == ids
        torch.testing.assert_close(
            got.logprobs[row, : len(ids)].double(), exact[row, ids], rtol=1e-6, atol=1e-6
        )
        assert (got.logprobs[row, len(ids) :] == -torch.inf).all()


def test_a_token_out_of_range_is_refused() -> None:
    with pytest.raises(RuntimeError, match="token id is out of range"):
        compute_token_logprobs(torch.zeros(1, 4), torch.tensor([[4]]))


@pytest.mark.parametrize("seed", range(25))
def test_prompt_ids(seed: Any) -> None:
    b = random_batch(seed)
    got = get_prompt_logprobs_token_ids(
        b.tokens, b.query_start_loc, b.idx_mapping, b.num_computed, b.all_token_ids
    )
    for i, slot in enumerate(b.idx_mapping.tolist()):
        begin, end = int(b.query_start_loc[i]), int(b.query_start_loc[i + 1])
        for t in range(begin, end):
            assert got[t] == b.all_token_ids[slot, b.num_computed[slot] + 1 + t - begin]


def test_prompt_ids_at_the_end_of_the_row() -> None:
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    got = get_prompt_logprobs_token_ids(
        3,
        torch.tensor([0, 3], dtype=torch.int32),
        torch.tensor([0]),
        torch.tensor([1, 0], dtype=torch.int32),
        table,
    )
    assert got.tolist() == [2, 3, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nans(dtype: Any) -> None:
    logits = rows(4, 2500, dtype)
    logits[1, [0, 7, 2499]] = torch.nan
    logits[2] = torch.nan
    logits[3, 5] = torch.inf
    assert get_num_nans(logits).tolist() == [0, 3, 2500, 0]


@pytest.mark.parametrize("slots", [1, 3])
def test_sampling_mask(slots: int) -> None:
    rng = np.random.default_rng(slots)
    sampled = torch.tensor(rng.integers(0, slots + 1, 5), dtype=torch.int32)
    starts = torch.arange(0, 5 * slots + 1, slots, dtype=torch.int32)
    logits = rows(5 * slots, 1027, torch.float32)
    logits[torch.rand(logits.shape) < 0.99] = -torch.inf
    logits[0] = 1.0  # wider than what is listed
    got = SamplingMaskTensors.from_logits(logits, starts, sampled, 32, slots)
    bits = np.unpackbits(got.packed_mask.numpy(), axis=1, count=1027, bitorder="little")
    for request in range(5):
        for k in range(slots):
            row = request * slots + k
            if k >= sampled[request]:
                assert got.counts[row] == 0
                continue
            kept = np.flatnonzero(np.isfinite(logits[row].numpy()))
            assert got.counts[row] == len(kept)
            assert np.flatnonzero(bits[row]).tolist() == kept.tolist()
            assert got.token_ids[row, : len(kept)].tolist() == kept[:32].tolist()
