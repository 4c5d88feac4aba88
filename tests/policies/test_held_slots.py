"""Cache blocks are asked for where something changes, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.v1.diffusion.core.held_blocks import HeldSlots
from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.modes import BlockGrid

NOTHING = object()


class Manager:
    """Upstream's, as far as it is asked; it notes what it is asked."""

    empty_kv_cache_blocks = NOTHING

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.full = False

    def allocate_slots(self, request: Any, num_new_tokens: int, **_: Any) -> object:
        self.asked.append(request.num_computed_tokens + num_new_tokens)
        return None if self.full else [len(self.asked)]


def test_a_request_asks_for_what_it_does_not_hold() -> None:
    plan = RequestPlan(SimpleNamespace(), BlockGrid(4))  # type: ignore[arg-type]
    manager = Manager()
    slots = HeldSlots(manager, {"a": plan}, block_size=16)  # type: ignore[arg-type]

    def ask(computed: int, end: int, known: int, **more: Any) -> Any:
        request: Any = SimpleNamespace(request_id="a", num_computed_tokens=computed, num_tokens=known)
        return slots(request, end - computed, num_lookahead_tokens=4, **more)

    assert ask(0, 8, 4) == [1]
    assert ask(4, 8, 4) is NOTHING
    assert ask(4, 12, 8) is NOTHING  # 16 with the look-ahead: the same cache block.
    manager.full = True
    assert ask(8, 16, 12) is None  # A second one.
    assert ask(8, 16, 12) is None  # What was not given is asked for again.
    manager.full = False
    assert ask(8, 16, 12) == [4]
    assert ask(12, 20, 16) == [5]  # 16 known tokens fill a block, which others may find.
    assert ask(16, 20, 16) is NOTHING
    assert ask(16, 20, 16, full_sequence_must_fit=True) == [6]
    plan.forget()  # Preempted: its blocks are gone.
    assert ask(0, 20, 16) == [7]
    assert manager.asked == [8, 16, 16, 16, 20, 20, 20]
