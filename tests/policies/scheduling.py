# SPDX-License-Identifier: Apache-2.0
"""A scheduler without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

GOLDEN = Path(__file__).parent.parent / "golden"


class Engine:
    """A scheduler, and a worker that finishes each block with its last step."""

    def __init__(self, family: str, num_blocks: int, kv_block: int = 32, **options: Any) -> None:
        block_length = options.pop("block_length", None)
        config = EngineArgs(
            model=str(GOLDEN / family),
            dtype="float32",
            async_scheduling=False,
            block_size=kv_block,
            num_gpu_blocks_override=num_blocks,
            diffusion_config={"block_length": block_length} if block_length else None,
            **options,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(block_size=kv_block, num_kv_heads=1, head_size=32, dtype=torch.float32)
        self.scheduler = DiffusionScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=kv_block,
        )
        self._hasher: Any = None
        if config.cache_config.enable_prefix_caching:
            init_none_hash(sha256)
            self._hasher = get_request_block_hasher(kv_block, sha256)
        self.steps = 0
        self.preempted: list[str] = []
        self._done: dict[str, int] = {}

    def add(self, name: str, prompt: int, max_tokens: int, arrival: float, **diffusion: Any) -> Request:
        """Admits a request."""
        params = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            extra_args=DiffusionParams(**diffusion).to_extra_args(),
        )
        ids, hasher = list(range(prompt)), self._hasher
        request = Request(name, ids, params, None, arrival_time=arrival, block_hasher=hasher)
        self.scheduler.add_request(request)
        return request

    def step(self) -> dict[str, int]:
        """Runs a step; the tokens that each request of it emitted."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        self.steps += 1
        self.preempted += output.preempted_req_ids or ()
        begun = [data.req_id for data in output.scheduled_new_reqs]
        for name in [*begun, *output.scheduled_cached_reqs.resumed_req_ids]:
            self._done[name] = 0
        emitted = dict.fromkeys(output.num_scheduled_tokens, 0)
        for name in output.scheduled_spec_decode_tokens:
            plan, request = scheduler._plans[name], scheduler.requests[name]
            self._done[name] += 1
            if self._done[name] == plan.steps:
                self._done[name] = 0
                emitted[name] = plan.grid.end(request.num_tokens) - request.num_tokens
        names = list(emitted)
        ran = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[7] * emitted[name] for name in names],
        )
        scheduler.update_from_output(output, ran)
        return emitted

    def run(self, limit: int) -> int:
        """Runs until every request has ended; how many steps that took."""
        begin = self.steps
        while self.scheduler.requests:
            assert self.steps - begin < limit, f"no end after {limit} steps: {self.preempted}"
            self.step()
        return self.steps - begin
