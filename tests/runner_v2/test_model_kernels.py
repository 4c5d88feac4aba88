# SPDX-License-Identifier: Apache-2.0
"""The thinking budget, trace replay, and the inputs of some models, against loops."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.runner_v2.batches import int32, random_batch
from vllm.v1.worker.gpu.mm.rope import RopeState
from vllm.v1.worker.gpu.model_states import prompt_embeds
from vllm.v1.worker.gpu.sample.thinking_budget import apply_thinking_budget
from vllm.v1.worker.gpu.sample.trace_replay import apply_trace_tokens


def forced_token(tokens: Any, budget: Any, start: Any, natural: Any, forced: Any) -> Any:
    """The token that a thinking budget forces after `tokens`, or None."""

    def last(marker: Any) -> Any:
        found = [i for i in range(len(tokens) - len(marker) + 1) if tokens[i : i + len(marker)] == marker]
        return found[-1] if found else -1

    begin = last(start)
    if budget < 0 or begin < 0 or begin <= last(natural):
        return None
    if len(tokens) - begin - len(start) < budget:
        return None
    for length in range(min(len(forced) - 1, len(tokens)), 0, -1):
        if tokens[-length:] == forced[:length]:
            return forced[length]
    return forced[0]


@pytest.mark.parametrize("seed", range(40))
def test_thinking_budget(seed: Any) -> None:
    """Several steps with the cache kept, over few tokens so that markers are common."""
    rng = np.random.default_rng(seed)
    vocabulary, width, slots = 4, 120, 3
    start, natural, forced = ([int(t) for t in rng.integers(0, vocabulary, n)] for n in (2, 1, 3))
    budget = int32([5, -1, 0])
    table = int32(rng.integers(0, vocabulary, (slots, width)))
    total = int32([1, 30, 60])
    last_start, last_end = (torch.full((slots,), -1, dtype=torch.int32) for _ in range(2))
    scan = torch.zeros(slots, dtype=torch.int32)
    rows, local = [2, 2, 2, 0, 0, 1], [0, 1, 2, 0, 1, 0]
    for _ in range(12):
        ids = int32(rng.integers(0, vocabulary, len(rows)))
        logits = torch.zeros(len(rows), vocabulary)
        want = logits.clone()
        for row, slot in enumerate(rows):
            tokens = table[slot, : total[slot]].tolist()
            tokens += ids[row - local[row] + 1 : row + 1].tolist()
            token = forced_token(tokens, budget[slot].item(), start, natural, forced)
            if token is not None:
                want[row, token] = 1e9
        apply_thinking_budget(
            logits, torch.tensor([2, 0, 1]), torch.tensor(rows), budget, table, total, ids,
            int32(local), last_start, last_end, scan, int32(start), int32(natural), int32(forced),
        )  # fmt: skip
        assert logits.equal(want)
        total += int32(rng.integers(0, 4, slots))


def test_thinking_budget_of_a_slot_used_again() -> None:
    """A shorter sequence than what was scanned: the cache is of another request."""
    table = torch.zeros(1, 20, dtype=torch.int32)
    table[0, :3] = int32([7, 1, 1])
    cache = (int32([15]), int32([-1]), int32([18]))
    logits = torch.zeros(1, 9)
    apply_thinking_budget(
        logits, torch.tensor([0]), torch.tensor([0]), int32([2]), table, int32([3]), int32([1]),
        int32([0]), *cache, int32([7]), int32([8]), int32([8]),
    )  # fmt: skip
    assert logits.nonzero().tolist() == [[0, 8]]
    assert cache[0].tolist() == [0]


def test_trace_replay() -> None:
    sampled = torch.full((4,), 99)
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    apply_trace_tokens(
        sampled, torch.tensor([2, -1, 0, 1]), table, int32([4, 0, 2]), int32([5, 9, 8]),
        int32([4, 9, 7]),
    )  # fmt: skip
    assert sampled.tolist() == [9, 99, 1, 99]


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("dims", [3, 4])
def test_rope_positions(seed: Any, dims: int) -> None:
    b = random_batch(seed)
    rng = np.random.default_rng(seed)
    state = RopeState(dims, b.slots, 256, b.width, torch.device("cpu"))
    given = rng.integers(0, 99, (b.slots, dims, b.width))
    for slot in range(b.slots):
        state.prefill_delta.np[slot] = slot - 3
        for d in range(dims):
            length = int(b.prefill_len[slot])
            state.prefill_positions.stage_write(dims * slot + d, 0, given[slot, d, :length].tolist())
    state.apply_staged_writes()
    state.prepare_positions(b.idx_mapping, b.query_start_loc, b.prefill_len, b.num_computed)
    got = state.get_positions(b.tokens)
    for i, slot in enumerate(b.idx_mapping.tolist()):
        begin, end = int(b.query_start_loc[i]), int(b.query_start_loc[i + 1])
        at = int(b.num_computed[slot])
        for t in range(begin, end):
            for d in range(dims):
                place = at + t - begin
                prefill = at < b.prefill_len[slot]
                assert got[d, t] == (given[slot, d, place] if prefill else place + slot - 3)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompt_embeds(seed: Any, dtype: Any) -> None:
    b = random_batch(seed)
    hidden = 24
    torch.manual_seed(seed)
    embeds = [torch.randn(int(b.prefill_len[s]), hidden).to(dtype) for s in range(b.slots)]
    masks = [torch.rand(len(e)) < 0.3 for e in embeds]
    lens = int32([len(e) if s % 3 else 0 for s, e in enumerate(embeds)])
    address = [e.data_ptr() for e in embeds]
    is_token = [m.data_ptr() if s % 2 else 0 for s, m in enumerate(masks)]
    target = torch.zeros(b.tokens, hidden, dtype=dtype)
    want = target.clone()
    for i, slot in enumerate(b.idx_mapping.tolist()):
        begin, end = int(b.query_start_loc[i]), int(b.query_start_loc[i + 1])
        for t in range(begin, end):
            place = int(b.num_computed[slot]) + t - begin
            if place < lens[slot] and not (is_token[slot] and masks[slot][place]):
                want[t] = embeds[slot][place]
    prompt_embeds._apply_prompt_embeds_kernel[(1, 1)](
        target,
        target.stride(0),
        torch.tensor(address, dtype=torch.uint64),
        torch.tensor(is_token, dtype=torch.uint64),
        lens,
        b.idx_mapping,
        b.query_start_loc,
        b.num_computed,
        hidden,
        TOKEN_BLOCK=16,
        BLOCK_SIZE=1024,
    )
    assert target.equal(want)
