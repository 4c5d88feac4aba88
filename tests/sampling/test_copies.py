# SPDX-License-Identifier: Apache-2.0
"""Copies of guided canvases: their rows, sequences and block tables, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.sampling.no_sync import no_waiting
from vllm.v1.diffusion.canvas.copies import Copies
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.families import FAMILIES
from vllm.v1.diffusion.modes import BIDIRECTIONAL
from vllm.v1.diffusion.request.blocks import copy_begin
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling import step_logits
from vllm.v1.diffusion.worker.bidirectional import CanvasAttention, CanvasRows
from vllm.v1.diffusion.worker.sequences import GraphSequences

CPU = torch.device("cpu")
MASK, WIDTH, KV = 39, 4, 16
PROMPTS, ANSWERS, SCALES = (5, 20, 12, 9), (8, 6, 4, 8), (0.0, 2.0, 1.0, 3.0)
"""The third canvas ends with a KV block; the fourth request waits for room: one token, no logits."""


def batch() -> tuple[CanvasStates, Any, list[int]]:
    """Canvases of four requests in the slots 3 to 0, and a step of theirs."""
    canvases = CanvasStates(4, WIDTH, MASK, CPU, BIDIRECTIONAL.blocks)
    ends = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    lengths = []
    for i, (prompt, end, scale) in enumerate(zip(PROMPTS, ends, SCALES, strict=True)):
        decoding = Decoding("low_confidence_static", 4, WIDTH, 0.0, False, guidance=scale)
        canvases.add(3 - i, decoding, BIDIRECTIONAL.blocks.grid(WIDTH, prompt, end), prompt)
        lengths.append(end + copy_begin(end, KV) if scale else end)
    lengths[3] = 1
    counts = np.array([4, 4, 4, 0])
    slots = np.array([3, 2, 1, 0])
    canvases.guidance.copy_to_uva()
    start = np.concatenate(([0], np.cumsum(lengths)))
    step: Any = SimpleNamespace(
        num_reqs=4,
        num_reqs_after_padding=4,
        num_tokens=int(start[-1]),
        num_tokens_after_padding=int(start[-1]),
        num_draft_tokens=12,
        idx_mapping_np=slots,
        num_computed_tokens_np=np.zeros(4, dtype=np.int64),
        num_scheduled_tokens=np.array(lengths),
        query_start_loc_np=start.astype(np.int32),
        query_start_loc=torch.from_numpy(start.astype(np.int32)),
        cu_num_logits_np=np.concatenate(([0], np.cumsum(counts))),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        input_ids=torch.full((int(start[-1]),), 7),
        expanded_idx_mapping=torch.from_numpy(np.repeat(slots, counts)),
        expanded_local_pos=torch.arange(4).repeat(3),
    )
    for i, prompt in enumerate(PROMPTS):
        canvases.start[3 - i] = prompt
    return canvases, step, ends


def requests() -> Any:
    """What is read of the runner's request state."""
    lengths = np.array(PROMPTS[::-1])
    computed = torch.zeros(4, dtype=torch.int64)
    return SimpleNamespace(
        prompt_len=SimpleNamespace(np=lengths), num_computed_tokens=SimpleNamespace(gpu=computed)
    )


def test_rows_of_copies() -> None:
    canvases, step, ends = batch()
    rows = CanvasRows(canvases, FAMILIES[6])
    rows.begin_step(step, requests())
    rows.inputs(step)
    first = step.query_start_loc_np
    for i in (1, 2):
        copy = slice(first[i] + copy_begin(ends[i], KV), first[i + 1])
        assert step.positions[copy].tolist() == list(range(ends[i]))
        blank = [MASK] * PROMPTS[i] + [7] * (ends[i] - PROMPTS[i])
        assert step.input_ids[copy].tolist() == blank
        assert step.input_ids[first[i] : first[i] + ends[i]].eq(7).all()
    rows.point_logits(step, requests(), unsure=False)
    own, copies = step.logits_indices[:12], step.logits_indices[12:]
    assert own.tolist() == [first[i] + PROMPTS[i] + j for i in range(3) for j in range(4)]
    assert (copies - own[4:]).tolist() == [32] * 4 + [16] * 4
    assert rows.row_requests(step).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [1] * 4 + [2] * 4


def test_sequences_of_copies() -> None:
    """Every row has a sequence, none has more queries than keys, and a copy has KV blocks of its own."""
    canvases, step, _ = batch()
    config: Any = SimpleNamespace()
    attention = CanvasAttention(config, canvases, CPU)
    attention.block_sizes = sizes = (KV, KV // 2)
    tables = tuple(torch.arange(4)[:, None] * 100 + torch.arange(128 // size) for size in sizes)
    for captured in (False, True):
        sequences = attention.sequences(step, captured)
        assert sequences.request is not None
        assert sequences.request.tolist() == [0, 1, 1, 1, 2, 2, 3]
        queries = np.diff(sequences.query_start_loc)
        assert queries.tolist() == [13, 26, 6, 26, 16, 16, 1]
        assert queries.sum() == step.num_tokens
        assert sequences.seq_lens.tolist() == queries.tolist()
        if captured:
            count, longest = attention.graph_shape(step)
            assert len(queries) <= count <= step.num_tokens
            assert queries.max() <= longest
            staged = GraphSequences(128, tables, CPU).fill(sequences, count, tables)
        else:
            staged = sequences.staged(step, tables)
        attention.adjust(staged, step)
        for table, size in zip(staged.block_tables, attention.block_sizes, strict=True):
            begins = [0, 100, 100, 100 + 32 // size, 200, 200 + 16 // size, 300]
            assert table[:7, 0].tolist() == begins
            assert table[3, : 26 // size].tolist() == list(range(begins[3], begins[3] + 26 // size))


def test_a_step_without_guidance_is_as_it_was() -> None:
    canvases, step, ends = batch()
    canvases.guidance.np[:] = 0
    assert Copies.of(step, canvases) is None
    attention = CanvasAttention(SimpleNamespace(), canvases, CPU)  # type: ignore[arg-type]
    sequences = attention.sequences(step, captured=False)
    assert sequences.request is None
    assert sequences.seq_lens.tolist() == [*ends[:3], 1]
    # A graph's block tables are its own, for as many sequences as a step with copies has.
    captured = attention.sequences(step, captured=True)
    assert captured.request is not None
    assert captured.request.tolist() == [0, 1, 2, 3]
    assert captured.seq_lens.tolist() == sequences.seq_lens.tolist()


def test_sequences_of_answers_that_grow() -> None:
    """A window holds the longest answer; no sequence has more queries than the shortest one has keys."""
    canvases, step, ends = batch()
    canvases.guidance.np[:] = 0
    step.num_scheduled_tokens = np.array([*ends[:3], 1])
    step.query_start_loc_np = np.concatenate(([0], np.cumsum(step.num_scheduled_tokens))).astype(np.int32)
    canvases.initial.np[2] = 2  # The second request: 22 of 26 positions are there from the first step on.
    canvases.initial.np[3] = 1
    attention = CanvasAttention(SimpleNamespace(), canvases, CPU)  # type: ignore[arg-type]
    sequences = attention.sequences(step, captured=False)
    assert sequences.request is not None
    assert sequences.request.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert np.diff(sequences.query_start_loc).tolist() == [6, 6, 1, 22, 4, 16, 1]
    # All are new: the device does not have their lengths yet.
    assert sequences.seq_lens.tolist() == [6, 6, 6, 22, 22, 16, 1]
    canvases._added.clear()
    canvases.start[3], canvases.length[3] = PROMPTS[0], 4
    canvases.start[2], canvases.length[2] = PROMPTS[1], 3
    sequences = attention.sequences(step, captured=False)
    step.positions = torch.zeros(1)
    staged = sequences.staged(step, (torch.zeros(4, 8, dtype=torch.int64),))
    attention.block_sizes = (KV,)
    attention.adjust(staged, step)
    assert staged.seq_lens.tolist() == [9, 9, 9, 23, 23, 16, 1]


def test_copies_are_folded_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published formula, part by part, in the logits' own type; other rows stay as they are."""
    monkeypatch.setattr(step_logits, "MOST_BYTES", 4 * 10 * 3)
    canvases, step, _ = batch()
    rows = CanvasRows(canvases, FAMILIES[6])
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(20, 10, generator=generator)

    def rows_of(which: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.repeat(which, 4))

    denoising: Any = SimpleNamespace(
        row_slot=step.expanded_idx_mapping, slots_np=step.idx_mapping_np[:3], rows_of=rows_of
    )
    for dtype in (torch.float32, torch.bfloat16):
        logits = given.to(dtype)
        own, without = logits[:12].float(), logits[12:].float()
        scale = torch.tensor([2.0] * 4 + [1.0] * 4)[:, None]
        want = torch.cat((own[:4], without + (scale + 1) * (own[4:] - without))).to(dtype)
        with no_waiting(monkeypatch):
            folded = rows.folded(logits, denoising)
        assert torch.equal(folded, want)
    alone = given[:12]
    assert rows.folded(alone, denoising) is alone


def test_large_guided_logits_stay_in_the_range_of_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the greatest scale: what it carries beyond 65504 keeps its distribution."""
    canvases, step, _ = batch()
    canvases.guidance.np[:] = 100.0 * (canvases.guidance.np > 0)
    canvases.guidance.copy_to_uva()
    rows = CanvasRows(canvases, FAMILIES[6])
    given = 400 * torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    given[-1] = given[11] - 700.0  # A row that is too large as a whole.
    denoising: Any = SimpleNamespace(
        row_slot=step.expanded_idx_mapping,
        slots_np=step.idx_mapping_np[:3],
        rows_of=lambda which: np.flatnonzero(np.repeat(which, 4)),
    )
    logits = given.half()
    own, without = logits[4:12].double(), logits[12:].double()
    want = without + 101 * (own - without)
    assert (want.amax(dim=1) > 65504).any()
    folded = rows.folded(logits, denoising)[4:]
    assert folded.isfinite().all()
    torch.testing.assert_close(folded.double().softmax(-1), want.softmax(-1), rtol=0, atol=1e-3)
