# SPDX-License-Identifier: Apache-2.0
"""What a mode requires of the engine's configuration, and what its requests may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from vllm.logger import init_logger
from vllm.v1.diffusion.config import family_of, resolve_diffusion_config
from vllm.v1.diffusion.frontend.admission import check_one_block, keep_stop_tokens
from vllm.v1.diffusion.frontend.lengths import set_length
from vllm.v1.diffusion.loops.cuda_graphs import configure_graphs
from vllm.v1.diffusion.loops.engine_settings import (
    check_budget,
    configure_cpu,
    fit_cache_blocks,
    fit_warm_up,
    refuse_parts_of_prompts,
)
from vllm.v1.diffusion.modes.bidirectional import BIDIRECTIONAL, MORE_SEQUENCES
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.parts.d3llm import EARLY_STOP
from vllm.v1.diffusion.request.blocks import copy_begin, more_parts, placed
from vllm.v1.diffusion.request.fields import require
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.generation_loop.interface import GenerationLoop

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.request.decoding import Decoding

logger = init_logger(__name__)


class Settings:
    """The front end's part of a mode; the base refuses nothing and sets nothing."""

    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        """Sets what the user left open and refuses what cannot be.

        Args:
            vllm_config: The configuration, changed; its diffusion settings are resolved.
            loop: The loop, maybe a plug-in's.
            served: Longest block of a request.

        Raises:
            ValueError: A setting does not fit the mode.
        """

    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """Checks what the mode requires of a request beyond what all modes do.

        Args:
            params: The request's parameters, its template resolved.
            vllm_config: The engine's configuration.

        Raises:
            ValueError: Names the parameter.
        """

    def check_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """Checks what the mode requires of a prompt; arguments likewise.

        Args:
            prompt_len: Tokens of the prompt.
            params: The request's parameters.
            vllm_config: The engine's configuration.

        Raises:
            ValueError: Names the parameter.
        """


class BlockSettings(Settings):
    """Blocks at multiples of their length; a window is up to two of them."""

    open_blocks: ClassVar[int] = 1
    """Most open blocks of a request; a window may commit as many."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        model_config = vllm_config.model_config
        length = model_config.max_model_len // served * served
        if length == 0:
            raise ValueError(
                f"max_model_len={model_config.max_model_len} is shorter than one block of {served} tokens."
            )
        if length != model_config.max_model_len:
            logger.info(
                "max_model_len=%d lowered to %d, a whole number of blocks of %d.",
                model_config.max_model_len,
                length,
                served,
            )
            model_config.max_model_len = length
        width = self.open_blocks * served
        check_budget(vllm_config, 2 * width)
        configure_cpu(vllm_config)
        configure_graphs(vllm_config, served, self.open_blocks)
        fit_cache_blocks(vllm_config, served)
        fit_warm_up(vllm_config, width)

    @override
    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        parallel = vllm_config.parallel_config
        options = {
            "pipeline_parallel_size": (parallel.pipeline_parallel_size, 1),
            "enable_batch_sharded_sampling": (parallel.enable_batch_sharded_sampling, False),
        }
        given = {name: value for name, (value, only) in options.items() if value != only}
        if given and resolve_decoding(params, resolve_diffusion_config(vllm_config)).row_candidates:
            name, value = next(iter(given.items()))
            require(False, "rows", "elastic", f"is not supported with {name}={value!r}")


class PromptBlockSettings(BlockSettings):
    """Blocks counted from each prompt's end."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        family = family_of(vllm_config)
        if family.loop != vllm_config.generation_loop:
            raise ValueError(
                f"generation_loop={vllm_config.generation_loop!r} is for {family.name} checkpoints that are "
                "block-causal, where a family has both kinds: say so with --diffusion-config "
                '\'{"attention": "block_causal"}\'.'
            )
        if family.shifted and vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "pipeline_parallel_size > 1 is not supported with attention='block_causal' and "
                "right_shift_logits."
            )
        # A prompt's keys and values depend on its length, so no two lengths share them.
        vllm_config.cache_config.enable_prefix_caching = False
        super().configure(vllm_config, loop, served)


class SeededSettings(Settings):
    """Blocks from the prompt's end, one step at a time."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        one_step_at_a_time(vllm_config, "a causal context")
        check_budget(vllm_config, served)
        configure_cpu(vllm_config)
        configure_graphs(vllm_config, served)
        fit_warm_up(vllm_config, served)

    @override
    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        decoding = resolve_decoding(params, resolve_diffusion_config(vllm_config))
        if decoding.budget is not None:
            vocab_size = vllm_config.model_config.get_vocab_size()
            end = decoding.budget[1]
            require(
                end < vocab_size,
                "end_think_token_id",
                end,
                f"must be below {vocab_size}, the vocabulary's size",
            )
        if decoding.verifies:
            stages = vllm_config.parallel_config.pipeline_parallel_size
            require(
                stages == 1,
                "mode",
                "self_speculation",
                f"is not supported with pipeline_parallel_size={stages}",
            )

    @override
    def check_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        scheduler = vllm_config.scheduler_config
        room = min(scheduler.max_num_batched_tokens, scheduler.long_prefill_token_threshold or prompt_len)
        require(
            prompt_len <= room or resolve_decoding(params, resolve_diffusion_config(vllm_config)).causal,
            "causal_context",
            False,
            f"is not supported for a prompt of {prompt_len} tokens: it sees itself, so one step of at most "
            f"{room} tokens must take it (max_num_batched_tokens)",
        )


class AnchoredSettings(BlockSettings):
    """The same, one step at a time."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        one_step_at_a_time(vllm_config, "shifted block diffusion")
        super().configure(vllm_config, loop, served)


class CanvasSettings(Settings):
    """A window is prompt and canvas as a whole."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        scheduler_config = vllm_config.scheduler_config
        ours = (GenerationLoop.forward, GenerationLoop.compute_logits)
        if (type(loop).forward, type(loop).compute_logits) != ours:
            # Where a window begins depends on the step before it, which a plug-in may fail.
            if scheduler_config.async_scheduling:
                raise ValueError(
                    "async_scheduling=True is not supported with full diffusion by a loop that "
                    "overrides forward or compute_logits; leave it unset or False."
                )
            scheduler_config.async_scheduling = False
        refuse_parts_of_prompts(vllm_config)
        max_model_len = vllm_config.model_config.max_model_len
        if scheduler_config.max_num_batched_tokens < max_model_len:
            logger.info("max_num_batched_tokens raised to %d, a canvas.", max_model_len)
            scheduler_config.max_num_batched_tokens = max_model_len
        check_budget(vllm_config, max_model_len)
        configure_cpu(vllm_config)
        configure_graphs(vllm_config, served)
        fit_warm_up(vllm_config, served)

    @override
    def check_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        set_length(params, vllm_config)
        check_one_block(params, vllm_config)
        if params.stop_token_ids and params.structured_outputs is None:
            keep_stop_tokens(params, vllm_config)
        decoding = resolve_decoding(params, resolve_diffusion_config(vllm_config))
        policy = get_policy(decoding.algorithm)
        if policy.elastic:
            _check_elastic(params, decoding, vllm_config)
        if policy.whole_answer:
            _check_one_block(params, decoding, vllm_config.model_config.max_model_len)
        if policy.elastic or decoding.values.get(EARLY_STOP):
            _check_end_token(decoding, vllm_config)
        require(
            not (decoding.guidance and decoding.canvas) or (params.max_tokens or 0) <= decoding.canvas,
            "cfg_scale",
            decoding.guidance,
            f"is not supported for an answer of more than one canvas (max_canvas_length={decoding.canvas})",
        )

    @override
    def check_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        decoding = resolve_decoding(params, resolve_diffusion_config(vllm_config))
        longest = vllm_config.model_config.max_model_len
        end = min(prompt_len + (params.max_tokens or 0), longest)
        if get_policy(decoding.algorithm).elastic:
            rule = BIDIRECTIONAL.blocks
            parts = more_parts(*placed(decoding, rule, prompt_len, params.max_tokens or 0, longest))
            require(
                parts <= MORE_SEQUENCES,
                "initial_length",
                int(decoding.values["initial_length"]),
                f"must be more: prompt and answer may have {end} tokens, and must begin with at least the "
                f"{MORE_SEQUENCES + 1}th part of that",
            )
        needed = copy_begin(end, vllm_config.cache_config.block_size) + end
        require(
            not decoding.guidance or needed <= longest,
            "cfg_scale",
            decoding.guidance,
            f"computes prompt and answer, {end} tokens, twice in a step: that takes max_model_len={needed} "
            f"with KV blocks of {vllm_config.cache_config.block_size}, and the engine has {longest}",
        )


def _check_elastic(params: SamplingParams, decoding: Decoding, vllm_config: VllmConfig) -> None:
    """Checks what an answer needs whose length its policy decides."""
    name, length = decoding.algorithm, decoding.block_length
    require(
        (params.max_tokens or 0) <= length,
        "algorithm",
        name,
        f"writes an answer as one block: max_tokens={params.max_tokens} must be at most {length}, the block "
        "length, which --diffusion-config sets and diffusion_block_length shortens",
    )
    stages = vllm_config.parallel_config.pipeline_parallel_size
    require(stages == 1, "algorithm", name, f"is not supported with pipeline_parallel_size={stages}")


def _check_one_block(params: SamplingParams, decoding: Decoding, longest: int) -> None:
    """Checks that a canvas is one block, of a policy that decides in all of it."""
    length, canvas = decoding.block_length, decoding.canvas
    asked = longest if params.max_tokens is None else params.max_tokens
    one = canvas is not None and canvas // length < 2
    require(
        one or asked <= length,
        "algorithm",
        decoding.algorithm,
        f"decides in the whole answer at once: max_tokens={params.max_tokens} must be at most {length}, the "
        "block length, which --diffusion-config sets and diffusion_block_length shortens",
    )


def _check_end_token(decoding: Decoding, vllm_config: VllmConfig) -> None:
    """Checks the end token by which a policy judges."""
    size, end = vllm_config.model_config.get_vocab_size(), int(decoding.values["end_token_id"])
    require(end < size, "end_token_id", end, f"must be below {size}, the vocabulary's size")
    mask = resolve_diffusion_config(vllm_config).mask_token_id
    require(end != mask, "end_token_id", end, "is the mask token, which an answer never holds")


def one_step_at_a_time(vllm_config: VllmConfig, kind: str) -> None:
    """Switches asynchronous scheduling off."""
    scheduler_config = vllm_config.scheduler_config
    if scheduler_config.async_scheduling:
        raise ValueError(
            f"async_scheduling=True is not supported with {kind}: what a step computes depends on the "
            "step before it."
        )
    scheduler_config.async_scheduling = False


def refuse_pipeline(vllm_config: VllmConfig, kind: str, why: str) -> None:
    """Raises ValueError, which says ``why``, for a pipeline of several stages."""
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(f"pipeline_parallel_size > 1 is not supported with {kind}: {why}.")


def refuse_other_models(vllm_config: VllmConfig) -> None:
    """Raises ValueError for a loop beside ``block_diffusion``, unless that is the model's own."""
    pooled = resolve_diffusion_config(vllm_config).pooled_block_length
    if family_of(vllm_config).loop != "block_diffusion" or pooled is not None:
        raise ValueError(
            f"generation_loop={vllm_config.generation_loop!r} is not for this model: it is for block-causal "
            "ones whose tokens choose their experts alone (SDAR, LLaDA2.0, LLaDA2.1)."
        )
