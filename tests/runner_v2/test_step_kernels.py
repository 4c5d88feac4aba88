# SPDX-License-Identifier: Apache-2.0
"""A step's inputs and what follows it, against loops that say what each entry should be."""

from typing import Any

import pytest
import torch

from tests.runner_v2.batches import int32, random_batch
from vllm.v1.worker.gpu import input_batch as launch

SEEDS = range(25)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lookahead", [1, 3])
def test_prefill_inputs(seed: Any, lookahead: int) -> None:
    b = random_batch(seed)
    ids = torch.full((b.tokens + 7,), -5, dtype=torch.int32)
    ahead = torch.full((lookahead, b.slots), -5, dtype=torch.int32)
    want_ids, want_ahead = ids.clone(), ahead.clone()
    for i, slot in enumerate(b.idx_mapping.tolist()):
        at, end = int(b.num_computed[slot]), int(b.prefill_len[slot])
        if at >= end:
            continue
        begin, stop = int(b.query_start_loc[i]), int(b.query_start_loc[i + 1])
        for t in range(begin, stop):
            want_ids[t] = b.all_token_ids[slot, at + t - begin]
        for k in range(lookahead):
            position = at + stop - begin + k
            want_ahead[k, slot] = b.all_token_ids[slot, position] if position < end else 0
    launch.prepare_prefill_inputs(
        ids, ahead, b.idx_mapping, b.query_start_loc, b.all_token_ids, b.prefill_len, b.num_computed
    )
    assert ids.equal(want_ids)
    assert ahead.equal(want_ahead)


def test_prefill_inputs_beyond_the_row() -> None:
    """A window of drafts may end beyond the model's length; what is there is not a token."""
    ids = torch.full((6,), -5, dtype=torch.int32)
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    launch.prepare_prefill_inputs(
        ids,
        torch.zeros(1, 2, dtype=torch.int32),
        torch.tensor([0]),
        int32([0, 6]),
        table,
        int32([3, 0]),
        int32([2, 0]),
    )
    assert ids.tolist() == [2, 3, -5, -5, -5, -5]


@pytest.mark.parametrize("seed", SEEDS)
def test_positions(seed: Any) -> None:
    b = random_batch(seed)
    pos = torch.full((b.tokens + 3,), -5)
    lens = torch.full((b.slots,), -5, dtype=torch.int32)
    want_pos, want_lens = pos.clone(), torch.zeros_like(lens)
    for i, slot in enumerate(b.idx_mapping.tolist()):
        begin, stop = int(b.query_start_loc[i]), int(b.query_start_loc[i + 1])
        for t in range(begin, stop):
            want_pos[t] = b.num_computed[slot] + t - begin
        want_lens[i] = b.num_computed[slot] + stop - begin
    launch.prepare_pos_seq_lens(b.idx_mapping, b.query_start_loc, b.num_computed, pos, lens)
    assert pos.equal(want_pos)
    assert lens.equal(want_lens)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("new_tokens", [0, 1])
def test_combine(seed: Any, new_tokens: int) -> None:
    b = random_batch(seed, new_tokens=new_tokens)
    ids = torch.full((b.tokens + 3,), -5, dtype=torch.int32)
    last = torch.arange(100, 100 + b.slots).view(-1, 1)
    want = ids.clone()
    want_rows: list[int] = []
    for i, slot in enumerate(b.idx_mapping.tolist()):
        end = int(b.query_start_loc[i + 1])
        count = int(b.cu_num_logits[i + 1] - b.cu_num_logits[i])
        want_rows += range(end - count, end)
        seq_len, prefill = int(b.seq_lens[i]), int(b.prefill_len[slot])
        if seq_len <= prefill:
            continue
        if new_tokens and seq_len - count >= prefill:
            want[end - count] = last[slot, 0]
        drafts = count - new_tokens
        for k in range(drafts):
            want[end - drafts + k] = b.draft_tokens[slot, k]
    rows = launch.combine_sampled_and_draft_tokens(
        ids,
        b.idx_mapping,
        last,
        b.query_start_loc,
        b.seq_lens,
        b.prefill_len,
        b.draft_tokens,
        b.cu_num_logits,
        len(want_rows),
        new_tokens,
    )
    assert rows.tolist() == want_rows
    assert ids.equal(want)


def test_combine_without_draft_columns() -> None:
    """Without speculation the table of drafts has no columns."""
    b = random_batch(3, most_drafts=1)
    one = torch.arange(b.requests + 1, dtype=torch.int32)
    ids = torch.zeros(b.tokens, dtype=torch.int32)
    rows = launch.combine_sampled_and_draft_tokens(
        ids,
        b.idx_mapping,
        torch.zeros(b.slots, 1, dtype=torch.int64),
        b.query_start_loc,
        b.seq_lens,
        b.prefill_len,
        torch.zeros(b.slots, 0, dtype=torch.int64),
        one,
        b.requests,
    )
    assert rows.equal(b.query_start_loc[1:].long() - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_expand(seed: Any) -> None:
    b = random_batch(seed)
    total = int(b.cu_num_logits[-1])
    rows, local = launch.expand_idx_mapping(b.idx_mapping, total, b.cu_num_logits, 5)
    counts = b.cu_num_logits.diff().tolist()
    assert rows.tolist() == [s for s, n in zip(b.idx_mapping.tolist(), counts, strict=True) for _ in range(n)]
    assert local.tolist() == [k for n in counts for k in range(n)]
    assert rows.dtype == b.idx_mapping.dtype


@pytest.mark.parametrize("seed", SEEDS)
def test_sampled_and_rejected(seed: Any) -> None:
    b = random_batch(seed)
    sampled = torch.randint(1, 3, (b.requests,), dtype=torch.int32)
    given = sampled.clone()
    got, rejected = launch.get_num_sampled_and_rejected(
        sampled, b.seq_lens, b.cu_num_logits, b.idx_mapping, b.prefill_len
    )
    for i, slot in enumerate(b.idx_mapping.tolist()):
        logits = int(b.cu_num_logits[i + 1] - b.cu_num_logits[i])
        if b.seq_lens[i] < b.prefill_len[slot]:
            assert (got[i], rejected[i]) == (0, 0)  # type: ignore[comparison-overlap]  # tensors equal ints
        else:
            assert (got[i], rejected[i]) == (given[i], logits - given[i])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("ran", [True, False])
def test_post_update(seed: Any, counted: bool, ran: bool) -> None:
    b = random_batch(seed)
    torch.manual_seed(seed)
    mapping = b.idx_mapping.clone()
    mapping[torch.rand(b.requests) < 0.2] = -1
    sampled = torch.randint(0, 50, (b.requests, 6))[:, :4]  # rows wider than what is used
    num_sampled = torch.randint(0, 5, (b.requests,), dtype=torch.int32)
    rejected = torch.randint(0, 3, (b.requests,), dtype=torch.int32)
    last = torch.full((b.slots, 1), -5)
    bins = torch.randint(0, 3, (b.slots, 50), dtype=torch.int32) if counted else None
    got: list[Any] = [b.num_computed, last, bins, b.all_token_ids, b.total_len]
    want: list[Any] = [t if t is None else t.clone() for t in got]
    w_computed, w_last, w_bins, w_all, w_total = want
    for i, slot in enumerate(mapping.tolist()):
        if slot < 0:
            continue
        for k in range(num_sampled[i]):
            token = sampled[i, k]
            w_all[slot, w_total[slot]] = token
            w_total[slot] += 1
            w_last[slot, 0] = token
            if counted:
                w_bins[slot, token] += 1
        if ran:
            w_computed[slot] += b.query_start_loc[i + 1] - b.query_start_loc[i]
        w_computed[slot] -= rejected[i]
    launch.post_update(
        mapping,
        b.num_computed,
        last,
        bins,
        sampled,
        num_sampled,
        rejected,
        b.query_start_loc if ran else None,
        b.all_token_ids,
        b.total_len,
    )
    for ours, theirs in zip(got, want, strict=True):
        assert ours is theirs is None or ours.equal(theirs)


def test_post_update_beyond_the_row() -> None:
    """A token in flight when the model's length is reached has no place; the next row is safe."""
    table = torch.zeros(2, 3, dtype=torch.int32)
    total = int32([2, 1])
    launch.post_update(
        torch.tensor([0]),
        int32([2, 0]),
        torch.zeros(2, 1, dtype=torch.int64),
        None,
        torch.tensor([[7, 8]]),
        int32([2]),
        int32([0]),
        int32([0, 1]),
        table,
        total,
    )
    assert table.tolist() == [[0, 0, 7], [0, 0, 0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_post_update_computed(seed: Any) -> None:
    b = random_batch(seed)
    want = b.num_computed.clone()
    want[b.idx_mapping] += b.query_start_loc.diff()
    launch.post_update_num_computed_tokens(b.idx_mapping, b.num_computed, b.query_start_loc)
    assert b.num_computed.equal(want)


def test_a_slot_out_of_range_is_refused() -> None:
    b = random_batch(1)
    b.idx_mapping[0] = b.slots
    with pytest.raises(RuntimeError, match="slot is out of range"):
        launch.post_update_num_computed_tokens(b.idx_mapping, b.num_computed, b.query_start_loc)


def test_a_wrong_type_is_refused_by_name() -> None:
    b = random_batch(1)
    with pytest.raises(RuntimeError, match="num_computed_tokens must be int32 or int64"):
        launch.post_update_num_computed_tokens(b.idx_mapping, b.num_computed.float(), b.query_start_loc)
