# SPDX-License-Identifier: Apache-2.0
"""Which rows a request with elastic rows computes, and that choosing them waits for no device."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.sampling.no_sync import no_waiting
from tests.sampling.options import params
from tests.sampling.rig import Request, Rig, model
from vllm.v1.diffusion.canvas.row_budget import PartialWindows

LENGTH = 8


def request(key: int, **more: Any) -> Request:
    """One whose blocks of 8 take 4 steps, 2 positions each."""
    return Request(params(), [5, 6, 7, 8, 9, 10, 11, 12], key=key, block_length=LENGTH, **more)


def batch_of(rig: Rig, counts: list[tuple[int, int]]) -> Any:
    """A step's batch: the rows of each request's window, and of its logits."""
    slots = np.array([slot for slot, _, _ in rig.live.values()], dtype=np.int32)
    rows, logits = (np.array(column, dtype=np.int32) for column in zip(*counts, strict=True))
    ends, logits_ends = np.append(0, rows.cumsum()), np.append(0, logits.cumsum())
    start = rig.canvases.start[slots]
    positions = [start[i] + torch.arange(int(n)) for i, n in enumerate(rows)]
    local = [np.arange(n, dtype=np.int32) for n in logits]
    return SimpleNamespace(
        num_reqs=len(slots),
        req_ids=list(rig.live),
        idx_mapping=torch.from_numpy(slots).long(),
        idx_mapping_np=slots,
        num_draft_tokens=int(logits.sum()),
        num_scheduled_tokens=rows,
        query_start_loc_np=ends,
        cu_num_logits=torch.from_numpy(logits_ends).int(),
        cu_num_logits_np=logits_ends,
        expanded_idx_mapping=torch.from_numpy(np.repeat(slots, logits)),
        expanded_local_pos=torch.from_numpy(np.concatenate(local)),
        positions=torch.cat(positions),
        seq_lens=(start + torch.from_numpy(rows)).to(torch.int32),
    )


def logits_of(rig: Rig, batch: Any) -> torch.Tensor:
    """What the model says at the columns of a batch's rows of logits."""
    slot = batch.expanded_idx_mapping.tolist()
    keys = {slot: request.key for slot, request, _ in rig.live.values()}
    return torch.stack(
        [
            model(keys[s], int(rig.canvases.start[s]) + column, int(rig.canvases.step[s]))
            for s, column in zip(slot, batch.expanded_local_pos.tolist(), strict=True)
        ]
    )


def sure(rig: Rig, key: int, slot: int, column: int, step: int) -> float:
    """Confidence of a position in a step."""
    logits = model(key, int(rig.canvases.start[slot]) + column, step).double()
    probability = logits.softmax(-1)
    return float(probability[:-1].max())


@pytest.mark.parametrize("algorithm", ["low_confidence_static", "sequential"])
def test_rows_of_a_step(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are the masks that were most confident last; what was unmasked is renewed."""
    rig = Rig()
    names = [
        rig.add(request(1, algorithm=algorithm, more={"row_candidates": 3})),
        rig.add(request(2, algorithm="random")),
    ]
    slot = rig.live[names[0]][0]
    modules = [module for name, module in sys.modules.items() if name.startswith("vllm.")]
    last: dict[int, float] = {}
    masked = set(range(LENGTH))
    fresh: set[int] = set()
    for step, (rows, candidates) in enumerate(((8, 8), (5, 3), (5, 3), (4, 2))):
        batch = batch_of(rig, [(rows, candidates), (8, 8)])
        with no_waiting(monkeypatch, *modules):
            moved = rig.layout.place(batch)
        assert moved == (step > 0)
        columns = (batch.positions[:rows] - rig.canvases.start[slot]).tolist()
        chosen = batch.expanded_local_pos[:candidates].tolist()
        assert columns[rows - candidates :] == chosen
        order = sorted(masked) if algorithm == "sequential" else sorted(masked, key=lambda i: -last.get(i, 0))
        if step:
            assert chosen == order[:candidates]
            assert set(columns[: rows - candidates]) == fresh
        assert batch.positions[rows:].tolist() == list(range(8, 16)), "another request's rows are its own"
        assert batch.expanded_local_pos[candidates:].tolist() == list(range(8))
        last |= {i: sure(rig, 1, slot, i, step) for i in chosen}
        best = sorted(chosen, key=lambda i: i if algorithm == "sequential" else -last[i])
        logits = logits_of(rig, batch)
        with no_waiting(monkeypatch, *modules):
            output = rig.sampler(logits, batch)
        fresh = set(best[:2])
        masked -= fresh
        assert output.num_sampled.tolist() == [8 * (not masked), 8 * (step == 3)]
        if masked:
            held = rig.canvases.masked[slot].nonzero()[:, 0].tolist()
            assert set(held) == masked
    assert (output.sampled_token_ids >= 0).all()


def test_batches_without_parts() -> None:
    """Whole blocks, prompts, dummy batches and exact requests are left as they are."""
    rig = Rig()
    rig.add(request(1, more={"row_candidates": 3}))
    rig.add(request(2))
    whole = batch_of(rig, [(8, 8), (8, 8)])
    assert PartialWindows.of(whole, rig.canvases) is None
    committing = batch_of(rig, [(16, 8), (8, 0)])
    assert PartialWindows.of(committing, rig.canvases) is None
    prompt = batch_of(rig, [(5, 0), (8, 8)])
    assert PartialWindows.of(prompt, rig.canvases) is None
    dummy = batch_of(rig, [(5, 5), (8, 8)])
    dummy.num_draft_tokens = 0
    assert PartialWindows.of(dummy, rig.canvases) is None
    part = PartialWindows.of(batch_of(rig, [(5, 3), (5, 3)]), rig.canvases)
    assert part is not None
    assert [values.tolist() for values in part] == [[0], [5], [3]]


def test_a_slot_that_is_given_back_is_exact() -> None:
    rig = Rig()
    name = rig.add(request(1, more={"row_candidates": 3}))
    assert rig.canvases.elastic.any()
    rig.remove(name)
    assert not rig.canvases.elastic.any()
