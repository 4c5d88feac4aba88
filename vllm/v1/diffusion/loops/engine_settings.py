# SPDX-License-Identifier: Apache-2.0
"""Settings of the engine that every diffusion loop chooses, raises or refuses."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import psutil
import torch

from vllm import envs
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.diffusion.checkpoint.recognise import is_renamed
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.families import computes_whole_canvas
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.memory import check_memory
from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.resolve import resolve_decoding

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.diffusion.modes import Mode
    from vllm.v1.diffusion.request.decoding import Decoding

_PLUG_IN_S_SCHEDULER = "vllm.v1.generation_loop.scheduler_factory.make_scheduler"
UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Upstream's executor by its path: a CPU's platform replaces it where it goes by its short name."""
_CACHE_SLACK = 256
"""Tokens a request may hold beyond its length: a KV block's rest, lookahead."""


def configure_cpu(vllm_config: VllmConfig) -> None:
    """Chooses, where the user has not, what suits a CPU; elsewhere nothing."""
    if not current_platform.is_cpu():
        return
    scheduler_config = vllm_config.scheduler_config
    if scheduler_config.async_scheduling is None:
        # Nothing overlaps, and a block that finishes unforeseen costs a forward.
        scheduler_config.async_scheduling = False
    share_core_process(vllm_config)
    cache_config, model_config = vllm_config.cache_config, vllm_config.model_config
    if cache_config.kv_cache_memory_bytes is not None or envs.VLLM_CPU_KVCACHE_SPACE:
        return
    # Upstream reserves nearly all memory, and fails where it is not free.
    parallel_config = vllm_config.parallel_config
    per_token = (
        2
        * model_config.get_num_layers(parallel_config)
        * model_config.get_num_kv_heads(parallel_config)
        * model_config.get_head_size()
        * cast(torch.dtype, model_config.dtype).itemsize
    )
    one = per_token * (model_config.max_model_len + _CACHE_SLACK)
    # All that can be used, of half of the free memory; and room for one request, without which upstream
    # refuses to start, with a message that says how much it takes.
    half = psutil.virtual_memory().available // 2
    cache_config.kv_cache_memory_bytes = max(one, min(one * scheduler_config.max_num_seqs, half))


def share_core_process(vllm_config: VllmConfig) -> None:
    """Lets the rank of ``vllm serve`` run in the engine core's process, where one rank computes on a CPU.

    Upstream gives the rank a process of its own, which imports all of vLLM again: OpenMP reads which cores it
    may use when a process begins. A server knows them before it starts the engine core.

    Args:
        vllm_config: The configuration, changed. OpenMP's variables are set for processes that begin later.
    """
    parallel_config = vllm_config.parallel_config
    if not (
        sys.argv[1:2] == ["serve"]
        and "vllm.entrypoints.cli.serve" in sys.modules
        and envs.VLLM_ENABLE_V1_MULTIPROCESSING
        and parallel_config.distributed_executor_backend == "uni"
        and parallel_config.world_size_across_dp == 1
        and not vllm_config.scheduler_config.async_scheduling
    ):
        return
    parallel_config.distributed_executor_backend = UNIPROC
    before = dict(os.environ)
    with OMPProcessManager(vllm_config).configure_omp_envs(0, 0):
        changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    # The server's own process has read them already.
    os.environ.update(changed)
    # The start collects garbage many times: what was imported is none, and need not be read each time.
    gc.freeze()


def fit_cache_blocks(vllm_config: VllmConfig, block_length: int) -> None:
    """Lets cached prefixes end with a block, unless the user has chosen the cache's blocks."""
    cache_config = vllm_config.cache_config
    # Upstream's choice, and what attention backends want a multiple of.
    default, unit = (128, 32) if current_platform.is_cpu() else (cache_config.block_size, 16)
    if cache_config.user_specified_block_size or default % block_length == 0:
        return
    cache_config.block_size = math.lcm(unit, block_length)
    # As if the user had: upstream would choose again, by the attention backend alone.
    cache_config.user_specified_block_size = True


def fit_warm_up(vllm_config: VllmConfig, block_length: int) -> None:
    """Does without upstream's warm-up where the model cannot answer its requests.

    They have a token more than a block in their prompts, the ids of which are 0, 1, 2 and so on, and five
    blocks after that, whatever the context and the vocabulary hold. They have every sampling parameter.
    """
    model_config = vllm_config.model_config
    longest = 6 * block_length + 1
    fit = longest <= model_config.max_model_len and block_length < model_config.get_vocab_size()
    try:
        resolve_decoding(SamplingParams.for_sampler_warmup(), resolve_diffusion_config(vllm_config))
    except ParameterError:
        fit = False
    if not fit:
        vllm_config.kernel_config.enable_jit_warmup = False


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Raises ValueError for an option of the engine that diffusion models do not support."""
    parallel, model_config = vllm_config.parallel_config, vllm_config.model_config
    unsupported = {
        # An engine of another task would hold the model and answer no completion.
        f"convert={model_config.convert!r}": model_config.convert not in ("auto", "none"),
        "runner='pooling'": model_config.runner_type != "generate",
        "speculative_config": vllm_config.speculative_config is not None,
        "decode_context_parallel_size > 1": parallel.decode_context_parallel_size > 1,
        "prefill_context_parallel_size > 1": parallel.prefill_context_parallel_size > 1,
        "kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "kv_offloading_size": vllm_config.cache_config.kv_offloading_size is not None,
        "ec_transfer_config": vllm_config.ec_transfer_config is not None,
        "watermark_config": vllm_config.watermark_config is not None,
        "logits_processors": bool(model_config.logits_processors),
        "enable_prompt_embeds": model_config.enable_prompt_embeds,
        # What these ask for is upstream's sampler's, which no canvas is sampled by.
        "return_sampling_mask": model_config.return_sampling_mask,
        "enable_trace_replay": model_config.enable_trace_replay,
        "use_fp64_gumbel": model_config.use_fp64_gumbel,
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        # A step computes a position many times, with other experts each.
        "enable_return_routed_experts": vllm_config.aux_output_config.enable_return_routed_experts,
        # A window's sequences are not those that a batch is divided by.
        "enable_dbo": parallel.enable_dbo,
        "ubatch_size > 1": parallel.ubatch_size > 1,
    }
    for name, given in unsupported.items():
        if given:
            raise ValueError(f"{name} is not supported with diffusion models.")
    _check_scheduler(vllm_config)
    capacity = getattr(model_config.hf_config, "expert_capacity", None)
    spread = {
        "enable_expert_parallel": parallel.enable_expert_parallel,
        "data_parallel_size > 1": parallel.data_parallel_size > 1,
    }
    for name, given in spread.items() if capacity is not None else ():
        if given:
            raise ValueError(
                f"{name} is not supported with expert_capacity={capacity}: a rank must have all tokens of a "
                "block to pool its experts."
            )
    if current_platform.is_cpu() and parallel.data_parallel_size > 1 and model_config.is_moe:
        raise ValueError(
            f"data_parallel_size={parallel.data_parallel_size} is not supported on a CPU with a mixture of "
            "experts: its engines make each layer together, and upstream has no way to do so there. Start a "
            "server for each replica."
        )
    config = resolve_diffusion_config(vllm_config)
    assert config.algorithm is not None and config.block_length is not None
    check_memory(config.algorithm, vllm_config.scheduler_config.max_num_seqs, config.block_length)


def _check_scheduler(vllm_config: VllmConfig) -> None:
    """Refuses a scheduler that does not plan windows: no request would get on."""
    given = vllm_config.scheduler_config.scheduler_cls
    if given is None or given == _PLUG_IN_S_SCHEDULER:
        return
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.diffusion.core.scheduler import DiffusionScheduler

    cls = resolve_obj_by_qualname(given) if isinstance(given, str) else given
    if not (isinstance(cls, type) and issubclass(cls, DiffusionScheduler)):
        raise ValueError(
            f"scheduler_cls={given!r} is not supported with diffusion models: it plans no canvases. Leave it "
            "unset, or name a class derived from vllm.v1.diffusion.core.scheduler.DiffusionScheduler."
        )


def check_defaults(vllm_config: VllmConfig) -> None:
    """Refuses defaults that a request would be refused for.

    Args:
        vllm_config: The configuration; its diffusion settings are resolved.

    Raises:
        ValueError: Names the setting.
    """
    config = resolve_diffusion_config(vllm_config)
    size = vllm_config.model_config.get_vocab_size()
    ids: dict[str, Iterable[int | None]] = {
        "end_think_token_id": [config.end_think_token_id],
        "end_token_ids": config.end_token_ids or [],
    }
    for name, values in ids.items():
        if unfit := [i for i in values if i is not None and not 0 <= i < size]:
            raise ValueError(f"diffusion_config: {name} must be ids from 0 to {size - 1}, not {unfit[0]}.")
    assert config.algorithm is not None
    numbers = get_policy(config.algorithm).numbers
    if any(one.default is None and config.numbers.get(name) is None for name, one in numbers.items()):
        return  # Each request has to give the number.
    try:
        resolve_decoding(None, config)
    except ParameterError as error:
        message = str(error.args[0]).replace(PREFIX, "")
        raise ValueError(f"diffusion_config: {message}") from None


def refuse_parts_of_prompts(vllm_config: VllmConfig) -> None:
    """Raises ValueError for options that treat a part of a prompt alone.

    The keys and values of a prompt depend on what is generated after it, and a step computes a
    request's whole canvas. Both options are off unless they were asked for, where the name in the
    model's files says so much. Where only the user's choice of the loop does, or the checkpoint
    carries another model's name, upstream's default is switched off.
    """
    model_config = vllm_config.model_config
    if not computes_whole_canvas(model_config.architectures) or is_renamed(model_config):
        vllm_config.cache_config.enable_prefix_caching = False
        return
    asked = {
        "enable_prefix_caching": vllm_config.cache_config.enable_prefix_caching,
        "enable_chunked_prefill": vllm_config.scheduler_config.enable_chunked_prefill,
    }
    for name, given in asked.items():
        if given:
            raise ValueError(
                f"{name}=True has no effect on a model in which every position sees the whole canvas: a step "
                "computes a prompt and what is generated after it at once. Leave it unset or False."
            )


def check_budget(vllm_config: VllmConfig, widest: int) -> None:
    """Checks that the widest window fits into a step."""
    scheduler = vllm_config.scheduler_config
    budgets = {
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_scheduled_tokens": scheduler.max_num_scheduled_tokens,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold or None,
    }
    for name, value in budgets.items():
        if value is not None and value < widest:
            raise ValueError(
                f"{name}={value} is too small: a step computes up to {widest} tokens for one request."
            )


def check_mode(decoding: Decoding, mode: Mode) -> None:
    """Refuses a policy that needs another mode: drafts to verify, or several open blocks.

    Args:
        decoding: How a request is to be denoised.
        mode: The loop's.

    Raises:
        ParameterError: Names ``diffusion_algorithm``.
    """
    if decoding.row_candidates is not None and not mode.elastic_rows:
        raise ParameterError(
            "diffusion_rows='elastic' is not supported by an engine with another generation loop than "
            "block_diffusion; leave --generation-loop unset.",
            parameter="diffusion_rows",
            value="elastic",
        )
    for needs, what, loop in (
        (decoding.speculates and not mode.verifies, "verifies drafts", "verified_block_diffusion"),
        (
            get_policy(decoding.algorithm).opens_blocks and mode.blocks.open_blocks == 1,
            "opens several blocks of a request",
            "multi_block_diffusion",
        ),
    ):
        if needs:
            raise ParameterError(
                f"diffusion_algorithm={decoding.algorithm!r} needs an engine that {what}: start it with "
                f"--generation-loop {loop}, for SDAR, LLaDA2.0 and LLaDA2.1.",
                parameter="diffusion_algorithm",
                value=decoding.algorithm,
            )
