# SPDX-License-Identifier: Apache-2.0
"""What the scheduler of bidirectional models plans while a step is in flight, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.diffusion.core import bidirectional
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.diffusion.loops.full import FullDiffusionLoop
from vllm.v1.diffusion.message.report import DenoisingReport
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

GOLDEN = Path(__file__).parent.parent / "golden"
PROMPT = 5
LENGTH = 20
"""Tokens of an answer: blocks of 8, 8 and 4."""
FIRST, END = (0, PROMPT + LENGTH), PROMPT + LENGTH

Window = tuple[int, int]


class Rig:
    """A scheduler and the outputs that a test makes up for its steps."""

    def __init__(self, cache: str, family: str = "llada", num_blocks: int = 64) -> None:
        config = EngineArgs(
            model=str(GOLDEN / family),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=8,
            async_scheduling=True,
            diffusion_config={"block_length": 8, "cache": cache},
        ).create_engine_config()
        assert config.scheduler_config.async_scheduling
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32)
        self.scheduler = DiffusionScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=16,
            log_stats=True,
        )

    def add(self, name: str = "a", max_tokens: int = LENGTH, **diffusion: Any) -> Request:
        """Admits a request."""
        params = SamplingParams(
            temperature=0, max_tokens=max_tokens, extra_args=DiffusionParams(**diffusion).to_extra_args()
        )
        request = Request(name, list(range(PROMPT)), params, None, block_hasher=None)
        self.scheduler.add_request(request)
        return request

    def plan(self) -> tuple[SchedulerOutput, dict[str, tuple[int, int, int]]]:
        """Plans a step: each request's window, begin and end, and its rows of logits."""
        output = self.scheduler.schedule()
        begins = {data.req_id: data.num_computed_tokens for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        begins |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        windows = {}
        for name, count in output.num_scheduled_tokens.items():
            rows = len(output.scheduled_spec_decode_tokens.get(name, ()))
            windows[name] = (begins[name], begins[name] + count, rows)
        return output, windows

    def finish(self, step: SchedulerOutput, **unmasked: int) -> Any:
        """A step's output arrives: each request has so many tokens of a block that finished."""
        names = list(step.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[7] * unmasked.get(name, 0) for name in names],
        )
        return self.scheduler.update_from_output(step, output)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_fixed_schedule_is_planned_ahead(cache: str) -> None:
    """Each window is planned before the output of the one before it, blocks' ends included."""
    rig = Rig(cache)
    rig.add(algorithm="low_confidence_static", steps=2)
    windows, waiting = [], None
    for unmasks in (0, 8, 0, 8, 0, 4):
        step, planned = rig.plan()
        windows.append(planned["a"])
        if waiting is not None:
            rig.finish(waiting[0], a=waiting[1])
        waiting = (step, unmasks)
    assert waiting is not None
    assert rig.plan()[1] == {}, "the last step of a request is followed by none"
    (outputs,) = rig.finish(waiting[0], a=4).values()
    later: dict[str, Window] = {"none": (0, END), "prefix": (0, END), "dual": (0, 0)}
    for block, (begin, rows) in enumerate(((5, 8), (13, 8), (21, 4))):
        assert windows[2 * block] == (*FIRST, rows)
        if cache != "none":
            later[cache] = (begin, END if cache == "prefix" else begin + rows)
        assert windows[2 * block + 1] == (*later[cache], rows)
    (output,) = outputs.outputs
    assert output.finish_reason is not None
    # Each output carries what is new: here the last block's two steps.
    assert output.diffusion == DenoisingReport(steps=2, steps_per_block=[2])
    assert not rig.scheduler.requests


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_where_the_model_decides(cache: str) -> None:
    """The same block is planned again; what had unmasked costs a window that counts for nothing."""
    rig = Rig(cache)
    rig.add(algorithm="threshold", threshold=0.5)
    same = (*FIRST, 8) if cache == "none" else (5, 13, 8)
    first, window = rig.plan()
    assert window == {"a": (*FIRST, 8)}
    second, window = rig.plan()
    assert window == {"a": same}
    rig.finish(first, a=8)
    third, window = rig.plan()  # Of the next block: what the second one did, nobody knows yet.
    assert window == {"a": (*FIRST, 8)}
    rig.finish(second, a=8 if cache == "none" else 0)
    fourth, window = rig.plan()
    assert window == {"a": (*FIRST, 4) if cache == "none" else (13, 21, 8)}
    rig.finish(third, a=4 if cache == "none" else 8)
    if cache == "none":
        assert not rig.scheduler.requests, "what is in flight behind the end is dropped"
        assert rig.finish(fourth) == {} or all(not o.outputs for o in rig.finish(fourth).values())
        return
    fifth, window = rig.plan()
    assert window == {"a": (*FIRST, 4)}
    rig.finish(fourth)
    (outputs,) = rig.finish(fifth, a=4).values()
    (output,) = outputs.outputs
    assert output.diffusion == DenoisingReport(steps=1, steps_per_block=[1])


def test_a_request_that_ends_in_mid_flight() -> None:
    """By an abort, and by a stop token: the other goes on."""
    rig = Rig("dual")
    for name in ("a", "b", "c"):
        rig.add(name, algorithm="low_confidence_static", steps=1)
    rig.scheduler.requests["b"].sampling_params.stop_token_ids = [7]  # type: ignore[union-attr]
    first, _ = rig.plan()
    second, window = rig.plan()
    assert set(window) == {"a", "b", "c"}
    rig.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    outputs = rig.finish(first, a=8, b=8, c=8)
    assert {o.request_id: len(o.new_token_ids) for o in outputs[0].outputs} == {"b": 1, "c": 8}
    third, window = rig.plan()
    assert window == {"c": (*FIRST, 4)}
    outputs = rig.finish(second, a=8, b=8, c=8)
    assert {o.request_id: len(o.new_token_ids) for o in outputs[0].outputs} == {"c": 8}
    rig.finish(third, c=4)
    assert not rig.scheduler.requests


def test_a_preempted_request_keeps_what_unmasks_in_flight() -> None:
    """Its blocks are taken by an older one; the step in flight is delivered, then it starts over."""
    rig = Rig("dual", num_blocks=6)
    rig.add("a", algorithm="low_confidence_static", steps=2)
    rig.add("b", algorithm="low_confidence_static", steps=2)
    first, _ = rig.plan()
    second, _ = rig.plan()
    victim = rig.scheduler.running.pop()
    assert victim.request_id == "b"
    rig.scheduler._preempt_request(victim, 0.0)
    rig.finish(first)
    third, window = rig.plan()
    assert set(window) == {"a"}
    rig.finish(second, a=8, b=8)
    _, window = rig.plan()
    assert window == {"a": (13, 21, 8), "b": (*FIRST, 8)}
    rig.finish(third)
    assert rig.plan()[1] == {"a": (*FIRST, 4), "b": (13, 21, 8)}


def test_guided_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window holds the canvas and its copy, which begins with a KV block; a step has few such windows."""
    monkeypatch.setattr(bidirectional, "MORE_SEQUENCES", 4)
    rig = Rig("none")
    begin = rig.scheduler.vllm_config.cache_config.block_size
    assert begin == 128
    guided = (0, begin + END, 8)
    for name in "abc":
        rig.add(name, steps=2, cfg_scale=1.5)
    rig.add("d", steps=2)
    first, window = rig.plan()
    # The third one was admitted by upstream already.
    assert window == {"a": guided, "b": guided, "c": (0, 1, 0), "d": (*FIRST, 8)}
    second, window = rig.plan()
    assert window == {"a": guided, "b": guided, "d": (*FIRST, 8)}
    rig.finish(first)
    rig.finish(second, a=8, b=8, d=8)
    rig.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert rig.plan()[1] == {"b": guided, "c": guided, "d": (*FIRST, 8)}


def test_a_loop_that_calls_the_model_itself_is_not_planned_ahead() -> None:
    """A step that it fails would leave the next one with the wrong window."""

    class Own(FullDiffusionLoop):
        def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
            return model(**inputs)

    config = EngineArgs(model=str(GOLDEN / "llada"), dtype="float32").create_engine_config()
    scheduler = config.scheduler_config
    scheduler.async_scheduling = True
    FullDiffusionLoop().configure(config)
    assert scheduler.async_scheduling
    with pytest.raises(ValueError, match="async_scheduling=True is not supported with full diffusion"):
        Own().configure(config)
    scheduler.async_scheduling = None
    Own().configure(config)
    assert scheduler.async_scheduling is False


def test_a_shifted_model_s_cached_block_takes_a_step_for_its_first_position() -> None:
    """Dream's timetable is known in advance too, with and without a cache."""
    rig = Rig("none", "dream")
    rig.add("a", 8, algorithm="entropy", steps=2, block_length=8)
    rig.add("b", 8, algorithm="entropy", steps=2, cache="dual", block_length=8)
    rig.add("c", 8, algorithm="low_confidence_static", steps=2, cache="dual", block_length=8)
    end = PROMPT + 8
    first, window = rig.plan()
    assert window == dict.fromkeys("abc", (0, end, 8))
    second, window = rig.plan()
    assert window == {"a": (0, end, 8), "b": (5, end, 8), "c": (5, end, 8)}
    rig.finish(first)
    third, window = rig.plan()  # One position, then four a step: the third takes what is left.
    assert window == {"c": (5, end, 8)}
    rig.finish(second, a=8, b=8)
    assert rig.plan()[1] == {}
    rig.finish(third, c=8)
    assert not rig.scheduler.requests
