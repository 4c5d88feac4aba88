# SPDX-License-Identifier: Apache-2.0
"""The interface that a generation loop implements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.interface import SchedulerInterface
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.model_states.interface import ModelState

GENERATION_LOOP_API = 1
"""Version of this interface. A loop written for another one is refused."""


class GenerationLoop:
    """How requests advance: one object a process, made from the configuration.

    Every method's default is what upstream does, so a subclass overrides only
    what it changes. An object is made once in each process (front end, engine
    core, every worker) and shares nothing with the others but the
    configuration.
    """

    api_version: ClassVar[int] = GENERATION_LOOP_API

    def configure(self, vllm_config: VllmConfig) -> None:
        """Adjusts the configuration, before it is validated.

        Called in the front end's process, possibly more than once: it must be
        idempotent.

        Raises:
            ValueError: The loop cannot serve this model or configuration.
        """

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """Checks a request's parameters at admission, in the front end.

        Raises:
            ValueError: A parameter is out of range or would have no effect
                (HTTP 400). Name the parameter, its value and what is allowed.
        """

    def scheduler_cls(self, vllm_config: VllmConfig) -> type[SchedulerInterface] | str | None:
        """The scheduler's class or dotted path; None for upstream's choice."""
        return None

    def step(self, core: EngineCore) -> tuple[dict[int, EngineCoreOutputs] | None, bool]:
        """Runs one engine step; called by the engine core's busy loop.

        Returns:
            Outputs by client index, or None where nothing is ready yet, and
            whether the model was executed.
        """
        if core.batch_queue is None:
            return core.step()
        return core.step_with_batch_queue()

    def model_state_cls(self, model: nn.Module) -> type[ModelState] | None:
        """The worker's ``ModelState`` for this model; None for upstream's choice."""
        return None

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Calls the model, in the worker, once a step.

        Args:
            model: The live module, weights on the device.
            inputs: The model's keyword arguments: ``input_ids`` and
                ``positions`` ``[num_tokens]``, ``inputs_embeds``,
                ``intermediate_tensors``. The forward context (attention
                metadata, slot mapping) is set for exactly these tokens.

        Returns:
            What the model returns: hidden states ``[num_tokens, hidden_size]``
            (on the last pipeline stage).
        """
        return model(**inputs)

    def compute_logits(self, model: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """Calls the model's head, in the worker of the last pipeline stage.

        Args:
            model: The live module.
            hidden_states: Rows of what :meth:`forward` returned, for the positions
                that want logits, ``[rows, n]``.

        Returns:
            Logits ``[rows, vocab_size]``.
        """
        head: Any = model.compute_logits
        return cast("torch.Tensor", head(hidden_states))
