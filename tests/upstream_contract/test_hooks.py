"""The places where upstream calls us: patched lines are there, and mean what they meant."""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import pytest

from build_support import paths
from build_support.home import following, pinned
from tests.upstream_contract.overlay_source import attributes, class_tree, load

RUNNER = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
GPU = "vllm.v1.worker.gpu"
NOT_REACHED = {"get_logprobs_dims"}  # taken from the sampler for batch-sharded sampling only


def calls_in(cls: type, method: str) -> set[str]:
    """Return the names of the functions and methods that a method calls."""
    (body,) = (n for n in class_tree(cls).body if isinstance(n, ast.FunctionDef) and n.name == method)
    return {ast.unparse(node.func) for node in ast.walk(body) if isinstance(node, ast.Call)}


def taken_from(owner: str) -> set[str]:
    """Return the attributes that the runner takes from ``self.<owner>``."""
    runner = load(RUNNER)
    nodes = (node for base in runner.__mro__[:-1] for node in ast.walk(class_tree(base)))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == f"self.{owner}"
    }


def test_the_hooks_are_in_the_installed_tree() -> None:
    package = Path(load("vllm.version:__file__")).parent.parent
    upgraded = load("vllm:__version__").partition("+")[0] != pinned(paths.ROOT).version
    patches = (following if upgraded else pinned)(paths.ROOT).patches()
    for patch in patches:
        others = {file.path for p in patches if p.name != patch.name for file in p.files}
        for file in patch.files:
            text = (package / file.path).read_text("utf-8")
            ours = {line for hunk in file.hunks for line in set(hunk.new) - set(hunk.old) if line.strip()}
            missing = [line for line in ours if line not in text]
            assert not missing or file.path in others, (patch.name, file.path, missing)


def test_engine_core_calls_step_fn_without_arguments() -> None:
    core = load("vllm.v1.engine.core:EngineCore")
    assert "step_fn" in attributes(core) and "batch_queue" in attributes(core)
    for name in ("step", "step_with_batch_queue"):
        assert list(inspect.signature(getattr(core, name)).parameters) == ["self"], name
        returned = str(inspect.signature(getattr(core, name)).return_annotation)
        assert returned.startswith("tuple[dict[int, ") and returned.endswith(", bool]"), returned
    source = Path(inspect.getfile(core)).read_text("utf-8")
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    steps = [n for n in calls if ast.unparse(n.func) == "self.step_fn"]
    assert steps and not any(n.args or n.keywords for n in steps)
    # Whoever calls a step directly passes the loop by.
    named = {ast.unparse(n.func) for n in calls} & {"self.step", "self.step_with_batch_queue"}
    assert not named, f"upstream calls {named} beside step_fn"


@pytest.mark.parametrize(
    ("dotted", "names"),
    [
        ("vllm.v1.engine.core:EngineCore", {"failed_batch", "batch_queue", "scheduler", "model_executor"}),
        ("vllm.v1.core.sched.scheduler:Scheduler", {"running", "kv_cache_manager", "kv_cache_config"}),
        ("vllm.v1.core.sched.interface:SchedulerInterface", {"finish_requests", "has_finished_requests"}),
        ("vllm.v1.core.kv_cache_manager:KVCacheManager", {"evict_blocks", "get_block_ids"}),
        ("vllm.v1.request:Request", {"num_in_flight_tokens", "num_computed_tokens", "client_index"}),
        ("vllm.v1.request:RequestStatus", {"FINISHED_ERROR"}),
        ("vllm.v1.engine:FinishReason", {"ERROR"}),
    ],
)
def test_a_failed_step_can_be_ended(dotted: str, names: set[str]) -> None:
    missing = names - attributes(load(dotted))
    assert not missing, f"{dotted} no longer has {sorted(missing)}"


def test_steps_in_flight_are_queued_with_their_batch() -> None:
    core = load("vllm.v1.engine.core:EngineCore")
    (body,) = (
        n for n in class_tree(core).body if isinstance(n, ast.FunctionDef) and n.name.endswith("batch_queue")
    )
    assert "batch_queue.appendleft((future, scheduler_output, exec_future))" in ast.unparse(body)


def test_the_scheduler_calls_what_we_override() -> None:
    scheduler = load("vllm.v1.core.sched.scheduler:Scheduler")
    assert "self._update_after_schedule" in calls_in(scheduler, "schedule")
    assert "self._preempt_request" in calls_in(scheduler, "schedule")
    assert "self.make_stats" in calls_in(scheduler, "update_from_output")


def test_upstream_ends_requests_that_have_no_grammar() -> None:
    """Those whose policy failed are put beside them."""
    scheduler = load("vllm.v1.core.sched.scheduler:Scheduler")
    (body,) = (
        n
        for n in class_tree(scheduler).body
        if isinstance(n, ast.FunctionDef) and n.name == "update_from_output"
    )
    text = ast.unparse(body)
    ids, errors = (
        "error_req_ids = set(self.grammar_compile_error_reqs)",
        "self.grammar_compile_error_reqs = {}",
    )
    assert ids in text or (errors in text and "error_req_ids = set(request_errors)" in text)  # 0.32, 0.33
    assert "self.finish_requests(error_req_ids, RequestStatus.FINISHED_ERROR)" in text


def test_a_request_that_becomes_another_is_preempted_as_at_a_reset() -> None:
    """What its steps in flight emit is dropped, and its log probabilities wait for an output."""
    scheduler = load("vllm.v1.core.sched.scheduler:Scheduler")
    preempt = inspect.signature(scheduler._preempt_request)
    preempt.bind(None, "request", 0.0, drop_stale_output=True)
    text = inspect.getsource(scheduler._preempt_request)
    assert "request.record_event(EngineCoreEventType.PREEMPTED" in text  # Taken back by us.
    assert "request.num_preemptions += 1" in text  # Likewise.
    assert "self.reset_preempted_req_ids.add(request.request_id)" in text
    update = inspect.getsource(scheduler.update_from_output)
    assert "if output_is_stale and request.drop_stale_output:" in update
    assert "new_token_ids or pooler_output is not None or stopped" in update
    assert "new_prompt_logprobs_tensors" in load("vllm.v1.engine:EngineCoreOutput").__struct_fields__


def test_a_report_is_taken_before_log_probabilities() -> None:
    """It says how many tokens of the prompt have none."""
    source = inspect.getsource(load("vllm.v1.engine.output_processor:OutputProcessor").process_outputs)
    assert source.index("take_reports(self") < source.index("logprobs_processor.update_from_output(")
    assert source.index("take_reports(self") < source.index("self._update_stats_from_output(")


def test_a_canvas_waits_where_outputs_do() -> None:
    """It is put beside an output that waits, and an output that comes takes its place."""
    collector = load("vllm.v1.engine.output_processor:RequestOutputCollector")
    assert "self.output.add(output, aggregate=self.aggregate)" in inspect.getsource(collector.put)
    for taken in (collector.get, collector.get_nowait):
        assert "self.output = None" in inspect.getsource(taken)
    state = inspect.getsource(load("vllm.v1.engine.output_processor:RequestState"))
    for name in ("queue", "parent_req", "external_req_id", "request_index"):
        assert f"self.{name} = {name}" in state
    assert "self.request_states" in inspect.getsource(
        load("vllm.v1.engine.output_processor:OutputProcessor").process_outputs
    )


@pytest.mark.parametrize("kind", ["completion", "chat_completion"])
def test_a_stream_reads_one_iterator_of_outputs(kind: str) -> None:
    served = {"completion": "OpenAIServingCompletion", "chat_completion": "OpenAIServingChat"}[kind]
    stream = getattr(load(f"vllm.entrypoints.openai.{kind}.serving:{served}"), f"{kind}_stream_generator")
    given = inspect.signature(stream).parameters
    assert {"request", "result_generator", "request_id", "model_name", "tokenizer"} <= given.keys()
    assert ("created_time" in given) == (kind == "completion")


def test_schedule_counts_the_step_before_it_looks_at_requests() -> None:
    """A request is skipped for one step by its next_decode_eligible_step."""
    scheduler = load("vllm.v1.core.sched.scheduler:Scheduler")
    (body,) = (
        n for n in class_tree(scheduler).body if isinstance(n, ast.FunctionDef) and n.name == "schedule"
    )
    text = ast.unparse(body)
    assert text.index("self.current_step += 1") < text.index("next_decode_eligible_step")


def test_the_runner_takes_nothing_from_the_sampler_that_ours_lacks() -> None:
    sampler = load("vllm.v1.diffusion.sampling.sampler:DenoisingSampler")
    lacking = taken_from("sampler") - attributes(sampler) - NOT_REACHED
    assert not lacking, f"the runner now also takes {sorted(lacking)} from its sampler"


def test_the_runner_takes_nothing_from_the_state_that_ours_lacks() -> None:
    state = load("vllm.v1.diffusion.worker.model_state:DiffusionModelState")
    lacking = taken_from("model_state") - attributes(state)
    assert not lacking, f"the runner now also takes {sorted(lacking)} from its ModelState"


def test_a_model_state_is_abstract_in_nothing_new() -> None:
    state = load("vllm.v1.diffusion.worker.model_state:DiffusionModelState")
    assert not getattr(state, "__abstractmethods__", ())


def test_custom_sampler_is_called_with_one_argument() -> None:
    interface = load(f"{GPU}.model_states.interface:ModelState")
    assert list(inspect.signature(interface.custom_sampler).parameters) == ["self", "sampler"]


def test_resolve_model_state_cls() -> None:
    function = load(f"{GPU}.model_states:resolve_model_state_cls")
    assert list(inspect.signature(function).parameters) == ["vllm_config", "model"]


def test_admission_validates_the_requests_own_copy() -> None:
    source = inspect.getsource(load("vllm.v1.engine.input_processor:InputProcessor").process_inputs)
    copied = source.index("sampling_params = params.clone()")
    assert (
        copied
        < source.index("validate_params(\n                sampling_params")
        < source.index("EngineCoreRequest(")
    )


def test_the_trace_survives_msgpack() -> None:
    """EngineCoreOutput is array-like: a field that is not last shifts what clients read."""
    output = load("vllm.v1.engine:EngineCoreOutput")
    assert output.__struct_fields__[-1] == "diffusion"
    assert output.__struct_config__.array_like


@pytest.mark.parametrize("name", ["generation_loop", "diffusion_config"])
def test_the_configuration_has(name: str) -> None:
    assert name in typing.get_type_hints(load("vllm.config:VllmConfig"), include_extras=True) or hasattr(
        load("vllm.config:VllmConfig"), name
    )
