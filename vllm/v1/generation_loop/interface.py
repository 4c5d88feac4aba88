# SPDX-License-Identifier: Apache-2.0
"""The interface that a generation loop implements.

Versioned: what is written here holds for every release whose ``GENERATION_LOOP_API`` is the
same. New methods may come, with a default; a changed or removed one raises the number. A loop
states the number it was written for in ``api_version``, by subclassing or by hand, and one for
another number is refused at the start.

Where a method runs
    *Front end*: the process of ``LLM`` or of the server. *Engine core*: the process that
    schedules. *Worker*: one process per device, with the model. With
    ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` and one device they are one process, and nothing else
    changes. Each process makes one object of the class, without arguments, when it first needs
    it; the objects share nothing but the configuration. A method is called by one thread at a
    time, except ``validate_params``.

Errors
    What a loop raises at the start keeps the engine from starting; in ``validate_params`` and
    ``validate_request`` it refuses the request (HTTP 400); in a step it ends the requests of that
    step with ``finish_reason="error"`` and a ``stop_reason`` that names the loop, the method, what
    was raised and the request (HTTP 500). The engine goes on. Methods of a loop's scheduler, model
    state and sampler are treated alike.

Workers in lock step
    All tensor-parallel ranks of a stage call the same methods in the same order with the same
    inputs, except that weights are sharded. A rank must make the same collective calls as the
    others: the same number of model calls on the same shapes, decided from values that all ranks
    have, never from its own clock, memory or random state. Before each call of the model and when a
    method returns, the ranks exchange one small message between hosts: where one
    raises, or calls the model while another returns, the step ends on all of them. Seen are calls
    of the model, of its head, and of its layers unless they are compiled; a collective call of
    a plug-in's own is its own to keep in step.

Pipelines
    Each stage is a rank group of its own. Where a method raises on one, the step goes on without
    the loop, on zeros, so that no other stage waits, and its requests fail at the last stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from vllm.forward_context import get_forward_context, is_forward_context_available

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.interface import SchedulerInterface
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.model_states.interface import ModelState

GENERATION_LOOP_API = 1
"""Version of this interface. A loop written for another one is refused."""


class GenerationLoop:
    """How requests advance. Every method's default is what upstream does.

    A subclass overrides only what it changes. Where it runs, what its errors become and what
    ranks must agree on, the module says; ``docs/plugins.md`` is the tutorial.
    """

    api_version: ClassVar[int] = GENERATION_LOOP_API
    """The version of the interface that the loop is written for."""

    reads_next_token: ClassVar[bool] = True
    """Whether the first token of an answer depends on its prompt alone: what scores that token asks."""

    def configure(self, vllm_config: VllmConfig) -> None:
        """Adjusts the configuration, before it is validated.

        *Process:* front end, in whatever thread makes the configuration. May be called more than
        once, also on a configuration that it adjusted before: it must be idempotent. Fields that
        the user did not set still hold ``None`` or their default. The other processes get the
        result; this method does not run there. Settings of a loop's own have a place in
        ``vllm_config.additional_config``.

        Args:
            vllm_config: The engine's configuration, to be changed in place.

        Raises:
            ValueError: The loop cannot serve this model or configuration.
        """

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """Checks a request's parameters at admission.

        *Process:* front end. *Thread:* any, several at a time in a server: keep no state. It must
        not wait for anything. A loop's own parameters travel in ``params.extra_args`` (over HTTP
        ``vllm_xargs``: strings, numbers and lists of them).

        Args:
            params: The request's own copy of what the caller gave. Fields may be set, for this
                request alone; what a field holds, such as the dictionary ``extra_args``, must be
                replaced, not changed in place.
            vllm_config: The engine's configuration.

        Raises:
            ValueError: A parameter is out of range or would have no effect. Name the parameter,
                its value and what is allowed.
        """

    def validate_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """Checks whether a request's prompt and its parameters fit each other.

        Called after :meth:`validate_params`, in the same place and under the same rules.

        Args:
            prompt_len: The prompt's tokens.
            params: The request's parameters.
            vllm_config: The engine's configuration.

        Raises:
            ValueError: They do not. Name the parameter, its value and what is allowed.
        """

    def validate_adapter(self, lora_request: LoRARequest | None, vllm_config: VllmConfig) -> None:
        """Checks a request's adapter at admission, in the same place and under the same rules.

        Kinds that upstream does not support are refused before, with every loop but the default.

        Args:
            lora_request: The adapter; None for none.
            vllm_config: The engine's configuration.

        Raises:
            ValueError: It cannot be served. Name it.
        """

    def validate_request(self, request: OpenAIBaseModel, vllm_config: VllmConfig, server: Any = None) -> None:
        """Checks a request of the HTTP server before it is run.

        For fields that never reach the sampling parameters; :meth:`validate_params` is called too,
        later, and for every request.

        *Process:* front end, in the server's event loop: it must not wait for anything.

        Args:
            request: The body: of a completion, a chat completion, a response or another.
            vllm_config: The engine's configuration.
            server: Upstream's object that serves the endpoint, such as ``OpenAIServingResponses``.

        Raises:
            ValueError: A field is out of range or would have no effect. Name it, its value and
                what is allowed.
        """

    def scheduler_cls(self, vllm_config: VllmConfig) -> type[SchedulerInterface] | str | None:
        """The scheduler of this loop.

        *Process:* front end, after :meth:`configure`, and engine core. A scheduler runs no tensor
        code: it knows requests, blocks and budgets, and never waits for a device. It must be
        importable by its dotted path. ``--scheduler-cls`` of the user's goes before it.

        Args:
            vllm_config: The engine's configuration.

        Returns:
            A class or its dotted path; None for upstream's choice.
        """
        return None

    def step(self, core: EngineCore) -> tuple[dict[int, EngineCoreOutputs] | None, bool]:
        """Runs one engine step: schedule, execute, account.

        *Process:* engine core, in its main thread, as long as there are requests. While it runs no
        request is admitted or aborted. It may wait for the workers, as the default does, and for
        nothing else. One that makes no progress is called again.

        Args:
            core: Upstream's engine core. This interface promises ``step``, ``step_with_batch_queue``,
                ``scheduler``, ``model_executor`` and ``batch_queue``, which is None unless several
                steps may be in flight (asynchronous scheduling, pipeline parallelism). All else is
                upstream's inside and may change with any release.

        Returns:
            Outputs by client index, or None where nothing is ready yet; and whether the model was
            executed.
        """
        if core.batch_queue is None:
            return core.step()
        return core.step_with_batch_queue()

    def model_state_cls(self, model: nn.Module) -> type[ModelState] | None:
        """The worker's books on running requests, and what it feeds to the model.

        *Process:* worker, once, when the weights are loaded. Upstream's ``ModelState`` receives
        requests (``add_request``, ``remove_request``), prepares a step's inputs and attention
        (``prepare_inputs``, ``prepare_attn``), and may put a sampler of its own in the place of
        upstream's (``custom_sampler``). Derive it from ``DefaultModelState`` or from a diffusion
        loop's. Whatever ``prepare_inputs`` returns is added to the inputs of :meth:`forward`:
        that is how per-request values get there. It must not wait for the device.

        Args:
            model: The live module.

        Returns:
            A class; None for the model's own (``get_model_state_cls``), else upstream's.
        """
        return None

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Calls the model: the place for passes of one's own.

        *Process:* worker, in its main thread, once per step, under ``torch.inference_mode``; also
        for warm-up and profiling, on made-up tokens without requests, with attention left out.
        It must not wait for the device (no ``.item()``, no printing of tensors) where steps are to
        overlap.

        The forward context (attention metadata, slot mapping) is set for exactly these tokens.
        ``super().forward`` may be called several times: each call writes the keys and values of
        the step's tokens anew, so the call whose cache entries are to stay comes last. Tokens
        may be replaced by others, never added, dropped or moved.

        A loop that overrides this method or :meth:`compute_logits` runs without CUDA graphs, which
        would replay the model without it, and refuses them if asked for. ``torch.compile`` may stay
        on; then hooks on the model's inner modules do not run.

        Args:
            model: The live module, weights on the device (a rank's shard of them).
            inputs: The model's keyword arguments, a new dict every time: ``input_ids`` int32
                ``[num_tokens]`` (None behind the first pipeline stage), ``positions`` int64
                ``[num_tokens]`` (``[3, num_tokens]`` for models with sections), ``inputs_embeds``,
                ``intermediate_tensors``, and what the model state added, which must be removed
                before the model is called. ``num_tokens`` may count padding at the end.

        Returns:
            ``[num_tokens, n]`` on the last pipeline stage: hidden states, or whatever
            :meth:`compute_logits` understands, such as several side by side. On an earlier
            stage what the model returned, ``IntermediateTensors``.
        """
        if is_forward_context_available():
            # Models with experts count their layers in it, once per call.
            get_forward_context().moe_layer_index = 0
        return model(**inputs)

    def compute_logits(self, model: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """Turns what :meth:`forward` returned into logits.

        *Process:* worker of the last pipeline stage, after :meth:`forward`, under
        ``torch.inference_mode``; also for prompt logprobs and warm-up. It must not wait for the
        device. The model's head is a collective call under tensor parallelism, and its result
        is whole on every rank.

        Args:
            model: The live module.
            hidden_states: Rows of what :meth:`forward` returned, those that want logits,
                ``[rows, n]``; there may be none.

        Returns:
            Logits ``[rows, vocab_size]``, float32, float16 or bfloat16, before temperature, penalties
            and sampling.
        """
        head: Any = model.compute_logits
        return cast("torch.Tensor", head(hidden_states))
