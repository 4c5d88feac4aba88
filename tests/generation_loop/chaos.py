# SPDX-License-Identifier: Apache-2.0
"""A loop that fails wherever a prompt tells it to."""

from __future__ import annotations

from typing import Any

import torch

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.generation_loop import GenerationLoop
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

FORWARD, SHAPE, NOTHING, LOGITS, STATE_ADD, STATE_INPUTS, SCHEDULE, ADD, STEP = range(101, 110)
"""Tokens of a prompt that make a method fail."""


class Chaos(Exception):
    """What the plug-in raises: no class of Python's or vLLM's."""


class ChaosScheduler(Scheduler):
    """Upstream's scheduler, failing on demand."""

    def add_request(self, request: Any) -> None:
        """Fails after the request is in the queue."""
        super().add_request(request)
        if ADD in (request.prompt_token_ids or ()):
            raise Chaos("no room")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Fails before anything is scheduled."""
        if any(SCHEDULE in (r.prompt_token_ids or ()) for r in self.requests.values()):
            raise Chaos("no plan")
        return super().schedule(*args, **kwargs)


class ChaosState(DefaultModelState):
    """Upstream's state, failing on demand."""

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Fails halfway through a step's new requests."""
        if STATE_ADD in new_req_data.prompt_token_ids:
            raise Chaos("no slot")
        super().add_request(req_index, new_req_data)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Fails before the model is called."""
        if _has(input_batch.input_ids[: input_batch.num_tokens], STATE_INPUTS):
            raise Chaos("no inputs")
        return super().prepare_inputs(input_batch, req_states)


class ChaosLoop(GenerationLoop):
    """Ordinary generation, failing on demand."""

    spoilt = False

    def validate_params(self, params: Any, vllm_config: Any) -> None:
        """Fails with an error that is no refusal, or refuses."""
        extra = params.extra_args or {}
        if "chaos" in extra:
            extra["chaos"]["missing"]
        if extra.get("refused"):
            raise ValueError(f"refused={extra['refused']!r} must be unset")

    def scheduler_cls(self, vllm_config: Any) -> type:
        """The scheduler above."""
        return ChaosScheduler

    def model_state_cls(self, model: Any) -> type:
        """The state above."""
        return ChaosState

    def step(self, core: Any) -> Any:
        """Fails with requests waiting."""
        if any(STEP in (r.prompt_token_ids or ()) for r in core.scheduler.requests.values()):
            raise Chaos("no step")
        return super().step(core)

    def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Fails before the model is called, or returns what it must not."""
        ids = inputs["input_ids"]
        self.spoilt = _has(ids, LOGITS)
        if _has(ids, FORWARD):
            raise Chaos("no forward")
        if _has(ids, NOTHING):
            return None
        hidden = super().forward(model, inputs)
        return hidden[:-1] if _has(ids, SHAPE) else hidden

    def compute_logits(self, model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Fails after the forward."""
        if self.spoilt:
            raise Chaos("no logits")
        return super().compute_logits(model, hidden_states)


def _has(ids: torch.Tensor, token: int) -> bool:
    return bool((ids == token).any())


class UnreadyLoop(GenerationLoop):
    """Refuses to start with an error that is no refusal."""

    def configure(self, vllm_config: Any) -> None:
        """Fails."""
        raise KeyError("a table")


class WrongClassesLoop(GenerationLoop):
    """Returns what is no scheduler."""

    def scheduler_cls(self, vllm_config: Any) -> Any:
        """No scheduler."""
        return dict


class WrongStateLoop(GenerationLoop):
    """Returns what is no model state."""

    def model_state_cls(self, model: Any) -> Any:
        """No state."""
        return dict
