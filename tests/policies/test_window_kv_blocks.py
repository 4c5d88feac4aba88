"""Cache blocks are asked for where something changes, and nowhere else."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.core.window_kv_blocks import WindowKVBlocks
from vllm.v1.diffusion.modes import BlockGrid
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

NOTHING = object()


class Manager:
    """Upstream's, as far as it is asked; it notes what it is asked."""

    ahead = 0

    empty_kv_cache_blocks = NOTHING

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.full = False

    def allocate_slots(self, request: Any, num_new_tokens: int, **more: Any) -> object:
        self.asked.append(request.num_computed_tokens + num_new_tokens)
        self.ahead = more["num_lookahead_tokens"]
        return None if self.full else [len(self.asked)]


def test_a_request_is_admitted_with_what_it_reserves() -> None:
    """Behind the first chunk of its prompt, also where a cached prefix was found."""
    plan = RequestPlan(SimpleNamespace(), BlockGrid(4), reserved=100)  # type: ignore[arg-type]
    manager = Manager()
    slots = WindowKVBlocks(manager, {"a": plan}, block_size=16)  # type: ignore[arg-type]
    request: Any = SimpleNamespace(request_id="a", num_computed_tokens=0, num_tokens=60)
    for found, ahead in ((0, 80), (32, 48)):
        slots(request, 20, num_lookahead_tokens=4, num_new_computed_tokens=found)
        assert manager.ahead == ahead
    slots(request, 98, num_lookahead_tokens=4, num_new_computed_tokens=0)
    assert manager.ahead == 4


def test_a_request_asks_for_what_it_does_not_hold() -> None:
    plan = RequestPlan(SimpleNamespace(), BlockGrid(4))  # type: ignore[arg-type]
    manager = Manager()
    slots = WindowKVBlocks(manager, {"a": plan}, block_size=16)  # type: ignore[arg-type]

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


SIZE, BLOCKS = 16, 64


def managers() -> tuple[KVCacheManager, KVCacheManager]:
    """Two of upstream's own managers, alike."""
    kind = FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32)
    config = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], kind)])
    one, other = (KVCacheManager(config, 1024, SIZE, SIZE) for _ in range(2))
    return one, other


def found(manager: KVCacheManager, request: Request) -> int:
    """Tokens of a new request with the same ids that the prefix cache holds."""
    return manager.get_computed_blocks(made("probe", [*request.all_token_ids, 1]))[1]


def made(name: str, ids: list[int]) -> Request:
    params = SamplingParams(max_tokens=400)
    return Request(name, ids, params, None, block_hasher=get_request_block_hasher(SIZE, sha256))


@pytest.mark.parametrize("length", [4, 8, 32])
def test_upstreams_manager_holds_what_it_would_if_it_were_asked_at_every_step(length: int) -> None:
    """Blocks, free blocks and what is found by its prefix, after every step of requests that come and go."""
    init_none_hash(sha256)
    chance = random.Random(length)
    spared, asked = managers()
    plans = {name: RequestPlan(SimpleNamespace(), BlockGrid(length)) for name in "abc"}  # type: ignore[arg-type]
    always = {name: RequestPlan(SimpleNamespace(), BlockGrid(length)) for name in "abc"}  # type: ignore[arg-type]
    held, shadow = WindowKVBlocks(spared, plans, SIZE), WindowKVBlocks(asked, always, SIZE)
    requests = {n: made(n, [chance.randrange(9) for _ in range(chance.randrange(3, 70))]) for n in plans}
    skipped = 0
    for _ in range(300):
        name = chance.choice(list(plans))
        request, plan = requests[name], plans[name]
        computed = request.num_computed_tokens
        end = plan.grid.reach(max(computed, request.num_tokens - 1))
        always[name].kv_blocks = None
        final = max(computed, plan.grid.computed(end, request.num_tokens))
        got, expected = (slots(request, end - computed) for slots in (held, shadow))
        assert (got is None) == (expected is None)
        skipped += got is spared.empty_kv_cache_blocks
        if got is None or end > 300:  # Preempted, or it ends.
            for manager in (spared, asked):
                manager.free(request)
            plans[name].forget()
            always[name].forget()
            requests[name] = made(name, [chance.randrange(9) for _ in range(chance.randrange(3, 70))])
        elif chance.random() < 0.4:  # The step finishes the block.
            request.num_computed_tokens = plan.grid.computed(end, request.num_tokens)
            request.append_output_token_ids([chance.randrange(9) for _ in range(end - request.num_tokens)])
        for one in requests.values():
            assert spared.get_block_ids(one.request_id) == asked.get_block_ids(one.request_id)
            assert found(spared, one) == found(asked, one)
        assert requests[name] is not request or found(spared, request) <= final
        assert spared.block_pool.get_num_free_blocks() == asked.block_pool.get_num_free_blocks()
    assert skipped > 60
