# SPDX-License-Identifier: Apache-2.0
"""Stands between the engine and a loop: checks what it returns, names what it raises.

Errors in the front end and at the start become a ``ValueError``; those of a step become
a :class:`GenerationLoopError`, which the engine core turns into failed requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.v1.generation_loop.adapters import AdapterLoading, check_adapter
from vllm.v1.generation_loop.checks import LOGIT_DTYPES, check_forward, check_rows, check_step
from vllm.v1.generation_loop.errors import (
    RequestRefusedError,
    describe,
    message_of,
)
from vllm.v1.generation_loop.grace import end_in_time
from vllm.v1.generation_loop.guarded_classes import (
    GuardedState,
    guarded,
)
from vllm.v1.generation_loop.interface import GenerationLoop
from vllm.v1.generation_loop.plug_ins import is_plug_in
from vllm.v1.generation_loop.ranks import call_on_all_ranks, vocabulary, watch
from vllm.v1.generation_loop.recovery import Snapshot, fail_batch, fail_refused
from vllm.v1.generation_loop.stages import failed, hidden_fallback

if TYPE_CHECKING:
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.interface import SchedulerInterface
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.model_states.interface import ModelState

logger = init_logger(__name__)

_SCHEDULER = "vllm.v1.generation_loop.scheduler_factory.make_scheduler"


class GuardedLoop(GenerationLoop):
    """A loop whose errors name it and never end the engine."""

    def __init__(self, name: str, loop: GenerationLoop) -> None:
        """Guards a loop.

        Args:
            name: What the configuration calls it.
            loop: The loop.
        """
        self.name = name
        self.loop = loop
        self._adapters = AdapterLoading()

    def overrides(self, method: str) -> bool:
        """Whether the loop has a method of its own."""
        return getattr(type(self.loop), method) is not getattr(GenerationLoop, method)

    # ---- front end -----------------------------------------------------------

    @override
    def configure(self, vllm_config: VllmConfig) -> None:
        calls_the_model = self.overrides("forward") or self.overrides("compute_logits")
        if calls_the_model:  # Before a loop that it derives from chooses graphs.
            _require_forward(self, vllm_config)
        with _naming(self, "configure"):
            self.loop.configure(vllm_config)
        if calls_the_model:
            _require_forward(self, vllm_config)

    @override
    def validate_adapter(self, lora_request: LoRARequest | None, vllm_config: VllmConfig) -> None:
        check_adapter(lora_request, vllm_config)
        with self._refusing("validate_adapter"):
            self.loop.validate_adapter(lora_request, vllm_config)

    @override
    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        with self._refusing("validate_params"):
            self.loop.validate_params(params, vllm_config)

    @override
    def validate_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        with self._refusing("validate_prompt"):
            self.loop.validate_prompt(prompt_len, params, vllm_config)

    @override
    def validate_request(self, request: OpenAIBaseModel, vllm_config: VllmConfig, server: Any = None) -> None:
        with self._refusing("validate_request"):
            self.loop.validate_request(request, vllm_config, server)

    @contextmanager
    def _refusing(self, method: str) -> Iterator[None]:
        """Whatever a plug-in raises refuses the request, and names the loop."""
        try:
            yield
        except Exception as error:
            if not is_plug_in(type(self.loop)):
                raise
            where = f"refused by generation_loop={self.name!r}, {method}()"
            if isinstance(error, VLLMValidationError):
                message = f"{error.args[0] if error.args else ''} ({where})"
                raise RequestRefusedError(message, parameter=error.parameter, value=error.value) from error
            if isinstance(error, ValueError):
                raise RequestRefusedError(f"{error} ({where})") from error
            logger.exception("A plug-in failed.")
            raise RequestRefusedError(describe(self.name, method, error)) from error

    @override
    def scheduler_cls(self, vllm_config: VllmConfig) -> str | None:
        """Names the loop's scheduler.

        Returns:
            The path of the class; that of ``scheduler_factory.make_scheduler`` where it is a plug-in's.
        """
        cls = self.resolved_scheduler(vllm_config)
        if cls is None:
            return None
        return _SCHEDULER if is_plug_in(cls) else f"{cls.__module__}.{cls.__qualname__}"

    def resolved_scheduler(self, vllm_config: VllmConfig) -> type[SchedulerInterface] | None:
        """The loop's scheduler as a class; None for upstream's."""
        from vllm.utils.import_utils import resolve_obj_by_qualname
        from vllm.v1.core.sched.interface import SchedulerInterface

        with _naming(self, "scheduler_cls"):
            cls: Any = self.loop.scheduler_cls(vllm_config)
            if isinstance(cls, str):
                cls = resolve_obj_by_qualname(cls.replace(":", "."))
            if cls is not None and not (isinstance(cls, type) and issubclass(cls, SchedulerInterface)):
                raise TypeError(f"{cls!r} is no SchedulerInterface")
        return cls

    # ---- engine core ---------------------------------------------------------

    @override
    def step(self, core: EngineCore) -> tuple[dict[int, EngineCoreOutputs] | None, bool]:
        """Fails the requests of a plug-in that raised.

        Any other error, of a device or of upstream, goes through.
        """
        end_in_time(core)
        if refused := fail_refused(core) or self._adapters.fail_unloadable(core):
            return refused, False
        before = Snapshot.of(core) if is_plug_in(type(self.loop)) else Snapshot()
        try:
            result = self.loop.step(core)
            if self.overrides("step"):
                check_step(result)
            return result
        except Exception as error:
            message = message_of(error)
            if message is None:
                if not self._is_ours(core):
                    raise
                logger.exception("A plug-in failed.")
                message = describe(self.name, "step", error)
            return fail_batch(core, message, before), False

    def _is_ours(self, core: EngineCore) -> bool:
        """Whether an unmarked error can only come from the plug-in's code in the core."""
        if getattr(core, "failed_batch", None) is not None:
            return False  # The executor or a worker.
        if getattr(core.model_executor, "is_failed", False):
            return False
        return self.overrides("step") and is_plug_in(type(self.loop))

    # ---- worker --------------------------------------------------------------

    @override
    def model_state_cls(self, model: nn.Module) -> type[ModelState] | None:
        from vllm.v1.worker.gpu.model_states.interface import ModelState

        if is_plug_in(type(self.loop)):
            watch(model)
        with _naming(self, "model_state_cls"):
            cls: Any = self.loop.model_state_cls(model)
            if cls is None:
                return None
            if not (isinstance(cls, type) and issubclass(cls, ModelState)):
                raise TypeError(f"{cls!r} is no ModelState")
        return guarded(cls, self.name, GuardedState)

    @override
    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        if not self.overrides("forward"):
            if failed():  # In the model state; the model's inputs are not whole.
                return hidden_fallback(model, inputs["positions"])
            return self.loop.forward(model, inputs)
        num_tokens = inputs["positions"].shape[-1]

        def call() -> Any:
            output = self.loop.forward(model, inputs)
            check_forward(output, num_tokens)
            return output

        return call_on_all_ranks(
            self.name, "forward", call, lambda: hidden_fallback(model, inputs["positions"])
        )

    @override
    def compute_logits(self, model: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:

        def fallback() -> torch.Tensor:
            return torch.zeros(len(hidden_states), vocabulary(model) or 1, device=hidden_states.device)

        if not self.overrides("compute_logits"):
            return fallback() if failed() else self.loop.compute_logits(model, hidden_states)

        def call() -> torch.Tensor:
            logits = self.loop.compute_logits(model, hidden_states)
            check_rows("logits", logits, len(hidden_states), vocabulary(model))
            if logits.dtype not in LOGIT_DTYPES:
                raise TypeError(f"logits of {logits.dtype} returned, not of float32, float16 or bfloat16")
            return logits

        return call_on_all_ranks(self.name, "compute_logits", call, fallback)


class _naming:
    """Turns what a loop raises at the start into a ``ValueError`` that names it."""

    def __init__(self, guard: GuardedLoop, method: str) -> None:
        self.guard = guard
        self.method = method

    def __enter__(self) -> None:
        """Enters."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Renames an error of a plug-in."""
        if isinstance(error, Exception) and is_plug_in(type(self.guard.loop)):
            raise ValueError(describe(self.guard.name, self.method, error)) from error


def _require_forward(guard: GuardedLoop, vllm_config: VllmConfig) -> None:
    """Forces the mode in which every model call goes through the loop, or refuses."""
    from vllm.config.compilation import CUDAGraphMode

    methods = " and ".join(m for m in ("forward", "compute_logits") if guard.overrides(m))
    compilation, parallel = vllm_config.compilation_config, vllm_config.parallel_config
    if compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ValueError(
            f"cudagraph_mode={compilation.cudagraph_mode.name} replays model calls without "
            f"generation_loop={guard.name!r}, which overrides {methods}. Leave it unset or NONE."
        )
    compilation.cudagraph_mode = CUDAGraphMode.NONE
    bypassing = {
        "ubatch_size or enable_dbo": parallel.use_ubatching,
        "enable_batch_sharded_sampling": bool(parallel.enable_batch_sharded_sampling),
        "speculative_config": vllm_config.speculative_config is not None,
    }
    for option, given in bypassing.items():
        if given:
            raise ValueError(
                f"{option} is not supported with generation_loop={guard.name!r}, which "
                f"overrides {methods}: it calls the model without them."
            )
