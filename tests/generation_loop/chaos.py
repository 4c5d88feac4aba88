# SPDX-License-Identifier: Apache-2.0
"""A loop that fails wherever a prompt tells it to."""

from __future__ import annotations

from typing import Any

import torch

from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.generation_loop import GenerationLoop
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler

FORWARD, SHAPE, NOTHING, LOGITS, STATE_ADD, STATE_INPUTS, SCHEDULE, ADD, STEP, NARROW = range(101, 111)
"""Tokens of a prompt that make a method fail."""

DOUBLE, INPUTS_NONE, ATTENTION_NONE, GONE = range(171, 175)
"""Likewise: wrong types, and a failure when the request has ended."""

(
    SCHEDULE_AFTER,
    STEP_AFTER,
    STEP_BETWEEN,
    GRAMMAR,
    UPDATE,
    UPDATE_AFTER,
    STATE_STAGED,
    STATE_BEFORE,
    ATTENTION,
    SAMPLER,
    STATE_AFTER,
    PREEMPTION,
) = range(131, 143)
"""Likewise: further phases of a step, in its order, and a plan that preempts a request."""

LONE_FORWARD, LONE_SECOND, LONE_LAYER, LONE_LOGITS, LONE_INPUTS, LONE_CALL, LONE_SAMPLER = range(121, 128)
"""Tokens that make the second rank or stage alone fail, or do what the other does not."""


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
        """Fails before anything is scheduled, or when all is."""
        if self._asked(SCHEDULE):
            raise Chaos("no plan")
        output = super().schedule(*args, **kwargs)
        if self._asked(SCHEDULE_AFTER):
            raise Chaos("no plan kept")
        if output.preempted_req_ids and self._asked(PREEMPTION):
            raise Chaos("no plan with less")
        return output

    def get_grammar_bitmask(self, scheduler_output: Any) -> Any:
        """Fails when the model may be running."""
        if self._asked(GRAMMAR):
            raise Chaos("no grammar")
        return super().get_grammar_bitmask(scheduler_output)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Fails before a step's tokens are processed, or when they are and requests have ended."""
        if self._asked(UPDATE):
            raise Chaos("no tokens")
        last = self._asked(UPDATE_AFTER)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if last:
            raise Chaos("no tokens kept")
        return outputs

    def _asked(self, token: int) -> bool:
        return any(token in (r.prompt_token_ids or ()) for r in self.requests.values())


class ChaosState(DefaultModelState):
    """Upstream's state, failing on demand."""

    staged = after = False

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Fails halfway through a step's new requests."""
        if STATE_ADD in new_req_data.prompt_token_ids:
            raise Chaos("no slot")
        super().add_request(req_index, new_req_data)
        self.staged = STATE_STAGED in new_req_data.prompt_token_ids
        if GONE in new_req_data.prompt_token_ids:
            self.gone = {*getattr(self, "gone", ()), new_req_data.req_id}

    def remove_request(self, req_id: str) -> None:
        """Fails for a request that has ended."""
        super().remove_request(req_id)
        if req_id in getattr(self, "gone", ()):
            raise Chaos("no end")

    def apply_staged_writes(self) -> None:
        """Fails when all requests have been added."""
        super().apply_staged_writes()
        if self.staged:
            raise Chaos("no writes")

    def preprocess_state(self, input_batch: Any, *args: Any, **kwargs: Any) -> None:
        """Fails before anything of the step is prepared."""
        super().preprocess_state(input_batch, *args, **kwargs)
        ids = input_batch.input_ids[: input_batch.num_tokens]
        # An earlier stage of a pipeline is called when the next step has begun, and would fail that.
        self.after = _has(ids, STATE_AFTER) and get_pp_group().is_last_rank
        if _has(ids, STATE_BEFORE):
            raise Chaos("no beginning")

    def postprocess_state(self, *args: Any, **kwargs: Any) -> None:
        """Fails when the tokens have been sampled."""
        super().postprocess_state(*args, **kwargs)
        if self.after:
            raise Chaos("no finish")

    def prepare_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Fails, or forgets to return."""
        if _has(input_batch.input_ids[: input_batch.num_tokens], ATTENTION):
            raise Chaos("no attention")
        metadata = super().prepare_attn(input_batch, *args, **kwargs)
        return None if _has(input_batch.input_ids[: input_batch.num_tokens], ATTENTION_NONE) else metadata

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Fails before the model is called."""
        if _has(input_batch.input_ids[: input_batch.num_tokens], STATE_INPUTS):
            raise Chaos("no inputs")
        if _alone(input_batch.input_ids[: input_batch.num_tokens], LONE_INPUTS):
            raise Chaos("no inputs here")
        if _has(input_batch.input_ids[: input_batch.num_tokens], INPUTS_NONE):
            return None  # type: ignore[return-value]
        # Behind the first pipeline stage the runner takes the ids out.
        return super().prepare_inputs(input_batch, req_states) | {"ids": input_batch.input_ids}

    def custom_sampler(self, sampler: Any) -> Any:
        """Upstream's sampler, failing on demand."""
        sampler.__class__ = ChaosSampler
        return sampler, None


class ChaosSampler(Sampler):
    """Upstream's sampler, failing on demand."""

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Fails halfway through a step's new requests."""
        if (sampling_params.extra_args or {}).get("unsampled"):
            raise Chaos("no parameters")
        super().add_request(req_idx, sampling_params)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        """Fails after the forward."""
        if _has(input_batch.input_ids[: input_batch.num_tokens], SAMPLER):
            raise Chaos("no token")
        if _alone(input_batch.input_ids[: input_batch.num_tokens], LONE_SAMPLER):
            raise Chaos("no token here")
        return super().__call__(logits, input_batch)


class ChaosLoop(GenerationLoop):
    """Ordinary generation, failing on demand."""

    spoilt = spoilt_here = narrow = double = False

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
        """Fails with requests waiting, between the plan and the model, or when all is done."""
        prompts = [r.prompt_token_ids or () for r in core.scheduler.requests.values()]
        if any(STEP in prompt for prompt in prompts):
            raise Chaos("no step")
        if any(STEP_BETWEEN in prompt for prompt in prompts):
            core.scheduler.schedule()
            raise Chaos("no call")
        result = super().step(core)
        if any(STEP_AFTER in prompt for prompt in prompts):
            raise Chaos("no step kept")
        return result

    def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Fails before the model is called, or returns what it must not."""
        ids = inputs.pop("ids")
        self.spoilt, self.narrow = _has(ids, LOGITS), _has(ids, NARROW)
        self.double = _has(ids, DOUBLE)
        if _has(ids, FORWARD):
            raise Chaos("no forward")
        if _has(ids, NOTHING):
            return None
        self.spoilt_here = _alone(ids, LONE_LOGITS)
        if _alone(ids, LONE_FORWARD):
            raise Chaos("no forward here")
        hidden = super().forward(model, inputs)
        if _has(ids, LONE_SECOND):
            if _alone(ids, LONE_SECOND):
                raise Chaos("no second pass here")
            try:
                hidden = super().forward(model, inputs)
            except Exception:  # A plug-in may hide what the other ranks report.
                hidden = super().forward(model, inputs)
        if _has(ids, LONE_LAYER):
            if _alone(ids, LONE_LAYER):
                raise Chaos("no layer here")
            model.model.layers[0](inputs["positions"], hidden, None)
        if _alone(ids, LONE_CALL):
            hidden = super().forward(model, inputs)
        return hidden[:-1] if _has(ids, SHAPE) else hidden

    def compute_logits(self, model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Fails after the forward."""
        if self.spoilt:
            raise Chaos("no logits")
        if self.spoilt_here:
            raise Chaos("no logits here")
        logits = super().compute_logits(model, hidden_states)
        if self.double:
            return logits.double()
        return logits[:, :-1] if self.narrow else logits


def _has(ids: torch.Tensor, token: int) -> bool:
    return bool((ids == token).any())


def _alone(ids: torch.Tensor, token: int) -> bool:
    """Whether the token is there, on the second rank or stage."""
    second = get_tensor_model_parallel_rank() == 1 or get_pp_group().rank_in_group == 1
    return second and _has(ids, token)


class ForwardLoop(GenerationLoop):
    """Calls the model, and leaves all else to ordinary generation."""

    def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The model's output."""
        return super().forward(model, inputs)


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
