# SPDX-License-Identifier: Apache-2.0
"""A plug-in's failure names it, ends its requests, and never the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generation_loop import chaos
from tests.generation_loop.elsewhere import generate, request, start
from tests.generation_loop.tiny import make_qwen3

LOOP = "tests.generation_loop.chaos.ChaosLoop"
TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "in_process": ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, {"async_scheduling": True}),
    "tensor_parallel": (TWO_CORES, {"tensor_parallel_size": 2}),
    "pipeline_parallel": (TWO_CORES, {"pipeline_parallel_size": 2}),
}
FAILURES = {
    chaos.FORWARD: "forward() raised Chaos: no forward",
    chaos.NOTHING: "forward() raised TypeError: NoneType returned, not hidden states",
    chaos.SHAPE: "forward() raised ValueError: hidden states of shape",
    chaos.LOGITS: "compute_logits() raised Chaos: no logits",
    chaos.NARROW: "compute_logits() raised ValueError: logits of shape",
    chaos.STATE_ADD: "ChaosState.add_request() raised Chaos: no slot",
    chaos.DOUBLE: "compute_logits() raised TypeError: logits of torch.float64 returned",
    chaos.INPUTS_NONE: "ChaosState.prepare_inputs() raised TypeError: NoneType returned, not a dict",
    chaos.ATTENTION_NONE: "ChaosState.prepare_attn() raised TypeError: NoneType returned, not a dict",
    chaos.STATE_INPUTS: "ChaosState.prepare_inputs() raised Chaos: no inputs",
    chaos.SCHEDULE: "ChaosScheduler.schedule() raised Chaos: no plan",
    chaos.ADD: "ChaosScheduler.add_request() raised Chaos: no room",
    chaos.STEP: "step() raised Chaos: no step",
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
SLOTS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint."""
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("mode", MODES)
def test_every_method_may_fail(mode: str, model: str) -> None:
    env, settings = MODES[mode]
    good = [request([*SHARED, 9], 12), request([200, 201, 202], 12)]
    calls = [good]
    failures = FAILURES | OF_MODE.get(mode, {})
    for token in failures:
        # Failing requests share a prefix with good ones: nothing of theirs may be cached.
        calls += [[request([*SHARED, *range(70, 90), token], 12)], good]
    # Others run when one fails in the middle: each ends, with ids or with the error.
    calls += [[request([5, 6, 7], 30), request([8, 9], 30), request([10, chaos.FORWARD], 4)], good]
    # New requests behind the one that fails are known to the step that is already planned.
    crowd_of_new = [request([5], 8), request([6, chaos.STATE_ADD], 8), request([7], 8)]
    # As many as there are slots, and one more.
    calls += [crowd_of_new, good, *([request([4, chaos.GONE], 4)] for _ in range(SLOTS + 1)), good]
    calls += [[request([1], extra_args={"chaos": {}})], [request([1], extra_args={"refused": 3})], good]
    settings = {"block_size": 32, "max_num_seqs": SLOTS} | settings
    results = generate(calls, env, model=model, generation_loop=LOOP, **settings)

    first = results[0]
    assert [r["finish_reason"] for r in first] == ["length", "length"]
    for i, (token, message) in enumerate(failures.items()):
        (failed,) = results[1 + 2 * i]
        assert failed["finish_reason"] == "error", token
        assert f"generation_loop='{LOOP}': {message}" in failed["stop_reason"], failed
        assert "(request " in failed["stop_reason"]
        assert results[2 + 2 * i] == first, token
    new, ended = results[-7 - SLOTS], results[-5 - SLOTS : -4]
    assert "ChaosState.add_request() raised" in new[1]["stop_reason"]
    assert results[-6 - SLOTS] == first
    assert [r["finish_reason"] for (r,) in ended] == ["length"] * (SLOTS + 1)
    assert results[-4] == first
    crowd, unknown, refused = results[-9 - SLOTS], results[-3], results[-2]
    assert crowd[2]["finish_reason"] == "error"
    for result in (*crowd, *new):
        # Those that began before the one that fails may write a token that makes them fail, too.
        assert result["finish_reason"] == "length" or f"generation_loop='{LOOP}'" in result["stop_reason"]
    assert results[-8 - SLOTS] == first
    assert f"generation_loop='{LOOP}': validate_params() raised KeyError: 'missing'" in unknown[0]["refused"]
    assert "refused=3 must be unset" in refused[0]["refused"]
    assert f"refused by generation_loop='{LOOP}', validate_params()" in refused[0]["refused"]
    assert results[-1] == first


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
