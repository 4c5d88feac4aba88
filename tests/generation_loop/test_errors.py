# SPDX-License-Identifier: Apache-2.0
"""A plug-in's failure names it, ends its requests, and never the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generation_loop import chaos
from tests.generation_loop.elsewhere import Request, Result, generate, request, start
from tests.generation_loop.tiny import make_qwen3
from vllm.v1.generation_loop.errors import GenerationLoopError

LOOP = "tests.generation_loop.chaos.ChaosLoop"
TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "in_process": ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, {"async_scheduling": True}),
    "tensor_parallel": (TWO_CORES, {"tensor_parallel_size": 2, "async_scheduling": False}),
    "pipeline_parallel": (TWO_CORES, {"pipeline_parallel_size": 2}),
}
FAILURES = {
    # A step's phases, in its order.
    chaos.ADD: "ChaosScheduler.add_request() raised Chaos: no room",
    chaos.STEP: "step() raised Chaos: no step",
    chaos.SCHEDULE: "ChaosScheduler.schedule() raised Chaos: no plan",
    chaos.SCHEDULE_AFTER: "ChaosScheduler.schedule() raised Chaos: no plan kept",
    chaos.STEP_BETWEEN: "step() raised Chaos: no call",
    chaos.STATE_ADD: "ChaosState.add_request() raised Chaos: no slot",
    chaos.STATE_STAGED: "ChaosState.apply_staged_writes() raised Chaos: no writes",
    chaos.STATE_BEFORE: "ChaosState.preprocess_state() raised Chaos: no beginning",
    chaos.ATTENTION: "ChaosState.prepare_attn() raised Chaos: no attention",
    chaos.STATE_INPUTS: "ChaosState.prepare_inputs() raised Chaos: no inputs",
    chaos.FORWARD: "forward() raised Chaos: no forward",
    chaos.GRAMMAR: "ChaosScheduler.get_grammar_bitmask() raised Chaos: no grammar",
    chaos.LOGITS: "compute_logits() raised Chaos: no logits",
    chaos.SAMPLER: "ChaosSampler.__call__() raised Chaos: no token",
    chaos.STATE_AFTER: "ChaosState.postprocess_state() raised Chaos: no finish",
    chaos.UPDATE: "ChaosScheduler.update_from_output() raised Chaos: no tokens",
    chaos.UPDATE_AFTER: "ChaosScheduler.update_from_output() raised Chaos: no tokens kept",
    chaos.STEP_AFTER: "step() raised Chaos: no step kept",
    # What must not be returned.
    chaos.NOTHING: "forward() raised TypeError: NoneType returned, not hidden states",
    chaos.SHAPE: "forward() raised ValueError: hidden states of shape",
    chaos.NARROW: "compute_logits() raised ValueError: logits of shape",
    chaos.DOUBLE: "compute_logits() raised TypeError: logits of torch.float64 returned",
    chaos.INPUTS_NONE: "ChaosState.prepare_inputs() raised TypeError: NoneType returned, not a dict",
    chaos.ATTENTION_NONE: "ChaosState.prepare_attn() raised TypeError: NoneType returned, not a dict",
}
OF_THE_SECOND = {
    chaos.LONE_FORWARD: "forward() raised Chaos: no forward here",
    chaos.LONE_LOGITS: "compute_logits() raised Chaos: no logits here",
    chaos.LONE_INPUTS: "ChaosState.prepare_inputs() raised Chaos: no inputs here",
    chaos.LONE_SAMPLER: "ChaosSampler.__call__() raised Chaos: no token here",
}
OF_ONE_RANK = OF_THE_SECOND | {
    chaos.LONE_SECOND: "forward() raised Chaos: no second pass here",
    chaos.LONE_LAYER: "forward() raised Chaos: no layer here",
    chaos.LONE_CALL: "forward() called the model on one tensor-parallel rank and returned on another",
}
OF_MODE = {"tensor_parallel": OF_ONE_RANK, "pipeline_parallel": OF_THE_SECOND}
SHARED = list(range(1, 65))
HARMLESS = {"allowed_token_ids": list(range(1, 101))}
"""What is written makes no method fail."""
SLOTS = 4
CACHE_BLOCKS = 13
"""Of 32 tokens: room for one of two requests of 256."""
GOOD = [request([*SHARED, 9], 12, **HARMLESS), request([200, 201, 202], 12, **HARMLESS)]
LONG = [request([*range(1, 97), 203, last], 150, **HARMLESS) for last in (chaos.PREEMPTION, 204)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint."""
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))


def run(calls: dict[str, list[Request]], mode: str, model: str) -> dict[str, list[Result]]:
    """Results of calls that one engine gets, by their names."""
    env, settings = MODES[mode]
    settings = {"block_size": 32, "max_num_seqs": SLOTS, "num_gpu_blocks_override": CACHE_BLOCKS} | settings
    results = generate(list(calls.values()), env, model=model, generation_loop=LOOP, **settings)
    return dict(zip(calls, results, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_every_method_may_fail(mode: str, model: str) -> None:
    failures = {str(token): message for token, message in (FAILURES | OF_MODE.get(mode, {})).items()}
    calls = {"first": GOOD}
    for i, name in enumerate(failures):
        # A prompt of which nothing is cached; without what made it fail; and in a cache of its own.
        prompt = [*SHARED[i:], *SHARED[:i]]
        calls[name] = [request([*prompt, int(name)], 12)]
        calls[f"{name} again"] = [request([*prompt, 9], 3, **HARMLESS)]
        calls[f"{name} alone"] = [request([*prompt, 9], 3, **HARMLESS) | {"salt": name}]
    calls["good"] = GOOD
    # Its last token is among those that are lost with the step.
    calls["last"] = [request([*SHARED, chaos.UPDATE_AFTER], 1)]
    # Others run when one fails in the middle: each ends, with ids or with the error.
    calls["crowd"] = [request([5, 6, 7], 30), request([8, 9], 30), request([10, chaos.FORWARD], 4)]
    calls["good after crowd"] = GOOD
    # New requests behind the one that fails are known to the step that is already planned.
    calls["new"] = [request([5], 8), request([6, chaos.STATE_ADD], 8), request([7], 8)]
    calls["good after new"] = GOOD
    unsampled = request([6], 8, extra_args={"unsampled": True})
    calls["unsampled"] = [request([5], 8), unsampled, request([7], 8)]
    calls["good after unsampled"] = GOOD
    # As many as there are slots, and one more.
    calls |= {f"gone {i}": [request([4, chaos.GONE], 4)] for i in range(SLOTS + 1)}
    calls["good after gone"] = GOOD
    calls["alone"], calls["preempted"] = LONG[1:], LONG
    calls["unknown"] = [request([1], extra_args={"chaos": {}})]
    calls["refused"] = [request([1], extra_args={"refused": 3})]
    calls["good at last"] = GOOD
    results = run(calls, mode, model)

    assert [r["finish_reason"] for r in results["first"]] == ["length", "length"]
    for name in (name for name in calls if name.startswith("good")):
        assert results[name] == results["first"], name
    for name, message in failures.items():
        (failed,) = results[name]
        assert failed["finish_reason"] == "error", name
        assert f"generation_loop='{LOOP}': {message}" in failed["stop_reason"], failed
        assert "(request " in failed["stop_reason"]
        assert results[f"{name} again"] == results[f"{name} alone"], message
        assert results[f"{name} again"][0]["finish_reason"] == "length"
    assert "update_from_output() raised Chaos: no tokens kept" in results["last"][0]["stop_reason"]
    assert "ChaosState.add_request() raised" in results["new"][1]["stop_reason"]
    assert "ChaosSampler.add_request() raised Chaos: no parameters" in results["unsampled"][1]["stop_reason"]
    assert results["crowd"][2]["finish_reason"] == "error"
    for result in (*results["crowd"], *results["new"], *results["unsampled"]):
        # Those that began before the one that fails may write a token that makes them fail, too.
        assert result["finish_reason"] == "length" or f"generation_loop='{LOOP}'" in result["stop_reason"]
    for i in range(SLOTS + 1):
        assert results[f"gone {i}"][0]["finish_reason"] == "length"
    # The workers never saw the plan that preempted a request; it resumes all the same.
    failed, preempted = results["preempted"]
    assert "schedule() raised Chaos: no plan with less" in failed["stop_reason"]
    assert [preempted] == results["alone"]
    unknown, refused = results["unknown"][0]["refused"], results["refused"][0]["refused"]
    assert f"generation_loop='{LOOP}': validate_params() raised KeyError: 'missing'" in unknown
    assert "refused=3 must be unset" in refused
    assert f"refused by generation_loop='{LOOP}', validate_params()" in refused


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ("UnreadyLoop", "configure() raised KeyError: 'a table'"),
        ("WrongClassesLoop", "scheduler_cls() raised TypeError: <class 'dict'> is no SchedulerInterface"),
    ],
)
def test_a_loop_that_cannot_configure_is_refused(loop: str, message: str, model: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    name = f"tests.generation_loop.chaos.{loop}"
    with pytest.raises(ValueError) as refused:
        EngineArgs(model=model, generation_loop=name, enforce_eager=True).create_engine_config()
    assert f"generation_loop='{name}': {message}" in str(refused.value)


def test_a_loop_that_fails_in_a_worker_keeps_the_engine_from_starting(model: str) -> None:
    name = "tests.generation_loop.chaos.WrongStateLoop"
    done = start([], {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, model=model, generation_loop=name)
    assert done.returncode != 0
    message = "model_state_cls() raised TypeError: <class 'dict'> is no ModelState"
    assert f"generation_loop='{name}': {message}" in done.stderr + done.stdout


def test_the_message_survives_other_exceptions() -> None:
    from vllm.v1.generation_loop.errors import GenerationLoopError, message_of

    text = 'it said "no"\nand {more}: é'
    quoted = RuntimeError(f"Worker failed with error '{GenerationLoopError(text)}', please check the stack")
    assert message_of(quoted) == text
    assert message_of(RuntimeError("a device is lost")) is None
    try:
        try:
            raise GenerationLoopError(text)
        except GenerationLoopError as error:
            raise KeyError("outer") from error
    except KeyError as outer:
        assert message_of(outer) == text


def test_a_stream_ends_with_the_message(tmp_path: Path) -> None:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.generation_loop.errors import RequestFailedError, error_or

    def output(finish_reason: str | None, stop_reason: str | None) -> RequestOutput:
        completion = CompletionOutput(
            0, "", [], None, None, finish_reason=finish_reason, stop_reason=stop_reason
        )
        return RequestOutput("a", None, [1], None, [completion], finished=True)

    good = output("stop", "END")
    assert error_or(good) is good
    failed = error_or(output("error", "forward() raised Chaos"))
    assert isinstance(failed, RequestFailedError) and "forward() raised Chaos" in str(failed)
    assert failed.http_status == 500


class Head(torch.nn.Module):
    """As much of a pipeline stage's model as a step that has failed needs."""

    def make_empty_intermediate_tensors(self, rows: int, dtype: torch.dtype, device: Any) -> Any:
        from vllm.sequence import IntermediateTensors

        return IntermediateTensors({"hidden_states": torch.zeros(rows, 4, dtype=dtype, device=device)})

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called in a step that has failed")

    forward = compute_logits


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Makes this process a stage of several, the last one or not."""
    from vllm.v1.generation_loop import stages

    def become(last: bool) -> None:
        monkeypatch.setattr(stages, "is_last_stage", lambda: last)

    monkeypatch.setattr(stages, "several_stages", lambda: True)
    yield become
    stages._step.failure, stages._step.running = None, False


def test_a_loop_without_a_forward_passes_its_states_failure_on(stage: Callable[[bool], None]) -> None:
    from vllm.v1.generation_loop import stages
    from vllm.v1.generation_loop.guard import GuardedLoop

    loop = GuardedLoop("state_only", chaos.UnreadyLoop())
    inputs: dict[str, Any] = {"positions": torch.arange(3)}
    stage(False)
    stages.begin_step()
    assert stages.defer_failure("ChaosState.prepare_inputs() raised Chaos")
    sent = loop.forward(Head(), inputs)
    assert not stages.failed() and sent.tensors["hidden_states"].shape == (3, 4)

    stage(True)
    stages.begin_step()
    stages.receive_failure(sent)
    hidden = loop.forward(Head(), inputs)
    assert len(loop.compute_logits(Head(), hidden)) == 3
    with pytest.raises(GenerationLoopError, match="prepare_inputs"):
        stages.end_step()


def test_a_step_that_was_given_up_leaves_no_failure(stage: Callable[[bool], None]) -> None:
    from vllm.v1.generation_loop import stages

    for last in (True, False):
        stage(last)
        stages.begin_step()
        stages.defer_failure("of the step before")
        stages.begin_step()
        assert stages.failed() is not last  # An earlier stage has yet to pass it on.
        stages._step.failure = None
