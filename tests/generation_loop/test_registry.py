# SPDX-License-Identifier: Apache-2.0
"""How a configuration finds its generation loop."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.generation_loop.tiny import make_qwen3
from vllm.v1.generation_loop import GenerationLoop, get_generation_loop, known_generation_loops

LOOPS = "tests.generation_loop.loops."


def config(name: str | None) -> Any:
    return SimpleNamespace(generation_loop=name)


def test_built_in_loops_are_known() -> None:
    assert {"autoregressive", "block_diffusion", "full_diffusion"} <= set(known_generation_loops())


def test_the_default_does_what_upstream_does() -> None:
    loop: Any = get_generation_loop(config(None))
    kind: Any = loop.__class__
    assert kind is GenerationLoop
    core: Any = SimpleNamespace(batch_queue=None, step=lambda: "one", step_with_batch_queue=lambda: "queue")
    assert loop.step(core) == "one"
    core.batch_queue = [0]
    assert loop.step(core) == "queue"
    assert loop.forward(lambda **inputs: inputs, {"input_ids": 1}) == {"input_ids": 1}
    assert loop.model_state_cls(None) is None
    assert loop.scheduler_cls(None) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_loop", "Known: autoregressive, block_diffusion"),
        (LOOPS + "NoSuchLoop", "cannot be imported"),
        ("no_such_package.Loop", "cannot be imported"),
        (LOOPS + "OldLoop", "interface 0, this engine has version 1"),
        (LOOPS + "BrokenLoop", r"__init__\(\) raised RuntimeError: no licence for this loop"),
        (LOOPS + "Path", "is no GenerationLoop"),
        (LOOPS + "annotations", "is no GenerationLoop"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_generation_loop(config(name))


def test_a_name_of_two_loops_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.generation_loop import registry

    group = registry.ENTRY_POINT_GROUP
    twice = EntryPoints(
        EntryPoint(name, LOOPS[:-1] + ":" + loop, group)
        for name, loop in (
            ("moonlit", "WitnessLoop"),
            ("moonlit", "FragileLoop"),
            ("autoregressive", "OldLoop"),
        )
    )
    monkeypatch.setattr(registry, "_entry_points", lambda: twice)
    for name in ("moonlit", "autoregressive"):
        with pytest.raises(ValueError, match=f"generation_loop='{name}' is registered more than once"):
            registry._load(name)


def test_one_object_a_process() -> None:
    name = LOOPS + "WitnessLoop"
    assert get_generation_loop(config(name)) is get_generation_loop(config(name))


def test_a_diffusion_model_is_never_run_autoregressively() -> None:
    from vllm.engine.arg_utils import EngineArgs

    golden = Path(__file__).parent.parent / "golden" / "sdar"
    with pytest.raises(ValueError, match="cannot run SDAR models"):
        EngineArgs(
            model=str(golden), generation_loop="autoregressive", enforce_eager=True
        ).create_engine_config()
    with pytest.raises(ValueError, match="cannot run SDAR models"):
        EngineArgs(
            model=str(golden), generation_loop="tests.generation_loop.chaos.ForwardLoop", enforce_eager=True
        ).create_engine_config()
    settings = EngineArgs(model=str(golden), enforce_eager=True).create_engine_config()
    assert settings.generation_loop == "block_diffusion"
    assert settings.use_v2_model_runner


def test_diffusion_settings_of_an_autoregressive_model_are_refused(tmp_path: Path) -> None:
    """The default loop would ignore them."""
    from vllm.engine.arg_utils import EngineArgs

    model = make_qwen3(tmp_path)
    options: dict[str, Any] = {"model": model, "enforce_eager": True, "skip_tokenizer_init": True}
    with pytest.raises(ValueError, match=r"diffusion_config has no effect on \['Qwen3ForCausalLM'\]"):
        EngineArgs(diffusion_config={"threshold": 0.5}, **options).create_engine_config()
    assert EngineArgs(**options).create_engine_config().generation_loop == "autoregressive"
