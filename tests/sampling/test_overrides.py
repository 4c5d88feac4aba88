# SPDX-License-Identifier: Apache-2.0
"""What a step unmasks where several things decide, and what a mode may do behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tests.sampling.rig import MASK, MAX_LENGTH, WIDTH, Request, Rig
from vllm import SamplingParams
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.modes import BlockGrid
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.rows import RowLayout
from vllm.v1.diffusion.sampling.unmasking import Orders, Override


def test_a_later_override_wins() -> None:
    """The policy alone; the first position; the whole block; nothing; and one request of each pair."""
    canvases = CanvasStates(6, WIDTH, MASK, torch.device("cpu"))
    for slot in range(6):
        canvases.add(slot, Decoding("low_confidence_static", 4, 4, 0.5, trace=False), BlockGrid(4), 0)
    canvases._copy_parameters()
    before = canvases.rule.gpu.clone(), canvases.steps.gpu.clone()
    rows = torch.arange(24).view(6, 4)
    step: Any = SimpleNamespace(
        slots=torch.arange(6), row_start=torch.arange(0, 25, 4), active=torch.ones(24, dtype=torch.bool)
    )
    first, whole, nothing = (torch.zeros(6, dtype=torch.bool) for _ in range(3))
    first[[1, 4, 5]] = True
    whole[[2, 4]] = True
    nothing[[3, 4]] = True
    overrides = [
        Override(first, Rule.GIVEN, chosen=(rows % 4 == 0).flatten()),
        Override(whole, Rule.STATIC, steps=1),
        Override(nothing, Rule.GIVEN),
    ]
    orders = Orders.of(canvases, step, None, overrides)
    static, given = int(Rule.STATIC), int(Rule.GIVEN)
    assert orders.rule.tolist() == [static, given, static, given, given, given]
    assert [orders.steps[i].item() for i in (0, 2)] == [4, 1]
    assert orders.chosen is not None
    assert orders.chosen.view(6, 4)[[1, 3, 5]].sum(dim=1).tolist() == [1, 0, 1]
    untouched = torch.equal(canvases.rule.gpu, before[0]) and torch.equal(canvases.steps.gpu, before[1])
    assert untouched, "the requests' own tables were written"


def test_without_overrides_the_tables_are_read_where_they_are() -> None:
    canvases = CanvasStates(2, WIDTH, MASK, torch.device("cpu"))
    step: Any = SimpleNamespace(slots=torch.arange(2))
    orders = Orders.of(canvases, step, None, [])
    assert orders.rule is canvases.rule.gpu and orders.steps is canvases.steps.gpu
    assert orders.chosen is None


class Hesitant(RowLayout):
    """Masks a block's first position again behind the block's first step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.after_steps = (self.hesitate,)

    def hesitate(self, stats: RowStats, step: Any, done: torch.Tensor) -> torch.Tensor:
        """Only once: the next step of the block is the second."""
        canvases, slots = self.canvases, step.slots
        again = (canvases.step[slots] == 1) & ~canvases.masked[slots, 0]
        canvases.masked[slots, 0] |= again
        canvases.tokens[slots, 0] = torch.where(again, MASK, canvases.tokens[slots, 0])
        return done & ~again


def test_a_mode_may_keep_a_block_open() -> None:
    """One step fills a block; the mode opens its first position again; the second step fills that."""
    request = Request(SamplingParams(temperature=0), prompt=[1, 2, 3, 4], steps=1)
    (plain,) = Rig().run([request], 4)
    (hesitant,) = Rig(rows=Hesitant).run([request], 4)
    assert plain.steps == [0, 0, 0, 0]
    assert hesitant.steps == [1, 0, 0, 0]
    assert hesitant.tokens[1:] == plain.tokens[1:]


def test_where_blocks_begin_on_the_device_too() -> None:
    """``RowLayout.computed`` is ``BlockGrid.computed``, for grids of any origin in one batch."""
    canvases = CanvasStates(3, WIDTH, MASK, torch.device("cpu"))
    grids = [BlockGrid(4), BlockGrid(4, origin=6), BlockGrid(8, origin=3)]
    for slot, grid in enumerate(grids):
        decoding = Decoding("low_confidence_static", 4, grid.block_length, 0.5, trace=False)
        canvases.add(slot, decoding, grid, prompt_len=8)
    canvases._copy_parameters()
    for end in range(9, MAX_LENGTH, 5):
        for members in ([0, 1, 2], [0], [1, 1], [2]):
            slots = torch.tensor(members)
            positions = torch.full((len(members),), end)
            found = canvases.floor(positions, slots, slots.numpy())
            assert found.tolist() == [grids[i].begin(end) for i in members]
