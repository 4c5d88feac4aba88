# SPDX-License-Identifier: Apache-2.0
"""How many rows the steps of a block compute with elastic rows, and what they do not go with; no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.diffusion.config import MaskedDiffusionConfig
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.diffusion.loops.engine_settings import check_mode
from vllm.v1.diffusion.modes import CAUSAL, MULTI_BLOCK
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.diffusion.request.row_budget import CANDIDATES, StepRows, rows_per_token, step_rows, timetable
from vllm.v1.generation_loop.registry import get_generation_loop
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

GOLDEN = Path(__file__).parent.parent / "golden"
CONFIG = MaskedDiffusionConfig(block_length=8, algorithm="low_confidence_static", mask_token_id=1)


def resolved(config: MaskedDiffusionConfig = CONFIG, params: Any = None, **diffusion: Any) -> Decoding:
    """A request's decoding."""
    extra_args = {f"diffusion_{name}": value for name, value in diffusion.items()}
    return resolve_decoding(SamplingParams(extra_args=extra_args, **(params or {})), config)


def test_a_timetable() -> None:
    """The first step computes all; a later one what the last one unmasked, and its candidates."""
    all_ = StepRows(32, 32)
    assert timetable(32, 8, 32, 12) == (all_, *[StepRows(16, 12)] * 5, StepRows(12, 8), StepRows(8, 4))
    assert timetable(32, 8, 32, 4) == (all_, *[StepRows(8, 4)] * 7)
    assert timetable(32, 32, 32, 2)[1:] == (*[StepRows(3, 2)] * 30, StepRows(2, 1))
    # 2, 2, 1, 1, 1 and 1 of 8: the remainder goes to the first steps.
    assert timetable(8, 6, 8, 2)[1:] == tuple(StepRows(*n) for n in ((4, 2), (4, 2), (3, 2), (3, 2), (2, 1)))
    # The last step that is allowed takes all that is left.
    assert timetable(16, 16, 16, 2, 3) == (StepRows(16, 16), StepRows(3, 2), StepRows(15, 14))
    # A block that begins with 6 known tokens computes no fewer rows than these.
    assert timetable(2, 8, 8, 1) == (StepRows(8, 8), StepRows(6, 1))
    assert rows_per_token(8, 32, None) == 9
    assert rows_per_token(8, 32, 4) == 1 + (32 + 7 * 8) / 32


def test_rows_where_the_model_decides() -> None:
    """The candidates, and half as many for what was unmasked; all in a block's last step that is allowed."""
    dynamic = resolved(algorithm="low_confidence_dynamic", threshold=0.9, rows="elastic", row_candidates=3)
    assert [step_rows(dynamic, step, 8, 8) for step in (1, 7, 30)] == [StepRows(5, 5)] * 3
    quota = resolved(
        algorithm="low_confidence_dynamic", threshold=0.9, steps=2, rows="elastic", row_candidates=1
    )
    assert step_rows(quota, 1, 8, 8) == StepRows(6, 6)
    assert step_rows(dynamic, 1, 1, 8) == StepRows(7, 7)
    capped = resolved(algorithm="threshold", threshold=0.9, rows="elastic", row_candidates=3, max_steps=3)
    assert [step_rows(capped, step, 8, 8) for step in (1, 2)] == [StepRows(5, 5), StepRows(8, 8)]


def test_values_come_from_the_request_and_the_engine() -> None:
    assert resolved().row_candidates is None
    assert resolved(rows="exact").row_candidates is None
    assert resolved(rows="elastic").row_candidates == CANDIDATES
    assert resolved(rows="elastic", row_candidates=5).row_candidates == 5
    engine = MaskedDiffusionConfig(
        block_length=8,
        algorithm="low_confidence_static",
        mask_token_id=1,
        rows="elastic",
        row_candidates=2,
    )
    assert resolved(engine).row_candidates == 2
    assert resolved(engine, row_candidates=4).row_candidates == 4
    assert resolved(engine, rows="exact").row_candidates is None


@pytest.mark.parametrize(
    ("given", "params", "message"),
    [
        ({"rows": "some"}, {}, r"^diffusion_rows='some' must be one of exact, elastic"),
        ({"row_candidates": 2}, {}, r"^diffusion_row_candidates=2 has no effect with diffusion_rows='exact'"),
        (
            {"rows": "elastic", "row_candidates": 0},
            {},
            r"^diffusion_row_candidates=0 must be an integer from 1",
        ),
        (
            {"rows": "elastic", "algorithm": "hierarchical", "threshold": 0.9},
            {},
            r"^diffusion_rows='elastic' is not supported with diffusion_algorithm='hierarchical', but",
        ),
        ({"rows": "elastic", "algorithm": "random"}, {}, "not supported with diffusion_algorithm='random'"),
        ({"rows": "elastic", "infill_ids": [3, -1]}, {}, "not supported with diffusion_infill"),
        ({"rows": "elastic", "exit_threshold": 0.9}, {}, "not supported with diffusion_exit_threshold"),
        (
            {"rows": "elastic", "eos_early_stop": True},
            {"stop_token_ids": [3]},
            "not supported with diffusion_eos_early_stop",
        ),
        (
            {"rows": "elastic"},
            {"structured_outputs": StructuredOutputsParams(regex="a+")},
            "not supported with structured_outputs",
        ),
        ({"rows": "elastic"}, {"bad_words": ["a"]}, "not supported with bad_words"),
    ],
)
def test_refused_by_name(given: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        resolved(params=params, **given)


def test_refused_of_other_models_and_loops() -> None:
    whole = MaskedDiffusionConfig(
        block_length=8, algorithm="low_confidence_static", mask_token_id=1, cache="none"
    )
    pooled = MaskedDiffusionConfig(
        block_length=8, algorithm="low_confidence_static", mask_token_id=1, pooled_block_length=8
    )
    for config in (whole, pooled):
        with pytest.raises(ParameterError, match=r"^diffusion_rows='elastic' is not for this model.*SDAR"):
            resolved(config, rows="elastic")
    check_mode(resolved(rows="elastic"), CAUSAL)
    with pytest.raises(
        ParameterError, match=r"^diffusion_rows='elastic' is not supported.*--generation-loop"
    ):
        check_mode(resolved(rows="elastic"), MULTI_BLOCK)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("llada", {"rows": "elastic"}, "diffusion_config: rows='elastic' has no effect on LLaDA models"),
        (
            "sdar",
            {"rows": "elastic", "algorithm": "edit", "edit_threshold": 0.9},
            "diffusion_config: rows='elastic' is not supported with .*'edit'",
        ),
    ],
)
def test_refused_as_a_default(family: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineArgs(model=str(GOLDEN / family), diffusion_config=config).create_engine_config()


def test_refused_with_a_pipeline() -> None:
    config = EngineArgs(model=str(GOLDEN / "sdar"), dtype="float32").create_engine_config()
    loop = get_generation_loop(config)
    asked = DiffusionParams(algorithm="low_confidence_static", rows="elastic")
    loop.validate_params(asked.sampling_params(), config)
    config.parallel_config.pipeline_parallel_size = 2
    with pytest.raises(ValueError, match="rows='elastic' is not supported with pipeline_parallel_size=2"):
        loop.validate_params(asked.sampling_params(), config)


class Rig:
    """A scheduler, and a worker that finishes each block with its last step."""

    def __init__(self, async_scheduling: bool) -> None:
        config = EngineArgs(
            model=str(GOLDEN / "sdar"),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=8,
            async_scheduling=async_scheduling,
            diffusion_config={"block_length": 16},
            enable_prefix_caching=False,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = 64
        spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32)
        self.scheduler = DiffusionScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(64, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=16,
        )

    def add(self, name: str, prompt: int, max_tokens: int, **diffusion: Any) -> Request:
        """Admits a request."""
        how = DiffusionParams(**{"algorithm": "low_confidence_static", **diffusion})
        params = how.sampling_params(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        request = Request(name, list(range(prompt)), params, None, block_hasher=None)
        self.scheduler.add_request(request)
        return request

    def plan(self) -> tuple[SchedulerOutput, dict[str, tuple[int, int, int]]]:
        """Plans a step: where each request's window begins, its tokens and its rows of logits."""
        output = self.scheduler.schedule()
        begins = {data.req_id: data.num_computed_tokens for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        begins |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        drafts = output.scheduled_spec_decode_tokens
        counts = output.num_scheduled_tokens
        assert output.total_num_scheduled_tokens == sum(counts.values())
        return output, {name: (begins[name], counts[name], len(drafts.get(name, ()))) for name in counts}

    def finish(self, step: SchedulerOutput, emitted: dict[str, int]) -> None:
        """A step's output arrives."""
        names = list(step.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[7] * emitted.get(name, 0) for name in names],
        )
        self.scheduler.update_from_output(step, output)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_windows(async_scheduling: bool) -> None:
    """A block's first step commits the block before; its later ones compute a part, all planned ahead."""
    rig = Rig(async_scheduling)
    rig.add("a", 20, 40, steps=4, rows="elastic", row_candidates=1)
    rig.add("b", 16, 64, steps=4)
    found: dict[str, list[tuple[int, int, int]]] = {"a": [], "b": []}
    waiting, done = [], {"a": 0, "b": 0}
    steps = {"a": [3, 7, 11], "b": [4, 8, 12, 16]}
    tokens = {"a": [12, 16, 16], "b": [16, 16, 16, 16]}
    for _ in range(18):
        step, planned = rig.plan()
        for name, window in planned.items():
            found[name].append(window)
        if planned:
            waiting.append(step)
        if waiting and (not async_scheduling or len(waiting) == 2 or not planned):
            arrived, emitted = waiting.pop(0), {}
            for name in arrived.num_scheduled_tokens:
                done[name] += 1
                if done[name] in steps[name]:
                    emitted[name] = tokens[name][steps[name].index(done[name])]
            rig.finish(arrived, emitted)
    # 12 masks go in three steps of 4; 4 known tokens stand before them.
    first = [(0, 32, 16), (16, 8, 4), (16, 8, 4)]
    later = [[(begin, 32, 16), *[(begin + 16, 8, 4)] * 3] for begin in (16, 32)]
    assert found["a"] == first + later[0] + later[1]
    exact = [[(begin - 16, 32, 16), *[(begin, 16, 16)] * 3] for begin in (16, 32, 48, 64)]
    assert found["b"] == [window for block in exact for window in block]
    assert not rig.scheduler.requests


def test_windows_where_the_model_decides() -> None:
    """Each later step has as many rows; one behind a finished block commits nothing."""
    rig = Rig(True)
    how = {"algorithm": "low_confidence_dynamic", "threshold": 0.9, "rows": "elastic", "row_candidates": 5}
    request = rig.add("a", 16, 32, **how)
    steps: list[Any] = []
    found: list[Any] = []
    # The second step finishes the block, which is known when the third has been planned.
    for tokens in (None, 0, 16, 0, 0, 16, 0):
        if tokens is not None:
            rig.finish(steps.pop(0), {"a": tokens})
        step, planned = rig.plan()
        found.append(planned.get("a"))
        steps.append(step)
        if tokens is None:
            step, planned = rig.plan()
            found.append(planned["a"])
            steps.append(step)
    part = (16, 8, 8)
    assert found == [(0, 32, 16), part, part, (16, 32, 16), (32, 8, 8), (32, 8, 8), None, None]
    assert request.num_output_tokens == 32
    assert not rig.scheduler.requests


def test_a_preempted_block_begins_with_all_rows() -> None:
    rig = Rig(False)
    request = rig.add("a", 16, 32, steps=4, rows="elastic", row_candidates=1)
    for _ in range(2):
        step, planned = rig.plan()
        rig.finish(step, {})
    assert planned["a"] == (16, 8, 4)
    rig.scheduler.running.remove(request)
    rig.scheduler._preempt_request(request, 0.0)
    step, planned = rig.plan()
    assert planned["a"] == (0, 32, 16)
    rig.finish(step, {})
    assert rig.plan()[1]["a"] == (16, 8, 4)
