# SPDX-License-Identifier: Apache-2.0
"""Runs a workload in an engine with dummy weights, and times it."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by vLLM when it is first imported. FlashInfer may not be there.
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from benchmarks.gpu.shapes import write_config

SEED = 20260

DEFAULTS: dict[str, Any] = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "seed": 0,
    "max_model_len": 1024,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": False,
}
"""Engine arguments of every benchmark, of a server too."""


@dataclass(frozen=True)
class Workload:
    """Requests of one kind; schedules are fixed, since weights are random."""

    batch: int
    prompt: int = 128
    tokens: int = 128
    block: int | None = None
    steps: int | None = None
    """Denoising steps per block; None: autoregressive."""
    candidates: int | None = None
    """``row_candidates`` of elastic rows; None: exact rows."""


@dataclass(frozen=True)
class Timing:
    """Medians of a workload.

    Attributes:
        seconds: Time of the whole batch, prompts included.
        tokens_per_second: New tokens of all requests in that time.
        forwards: Denoising steps of a request; for an autoregressive one its tokens.
        repeats: How many runs the median is of.
    """

    seconds: float
    tokens_per_second: float
    forwards: int
    repeats: int

    @property
    def step_ms(self) -> float:
        """Milliseconds a step of the batch, the prompts' share included."""
        return 1e3 * self.seconds / self.forwards


def start(shape: str, changes: dict[str, Any] | None = None, **settings: Any) -> Any:
    """An engine of a shape with dummy weights."""
    from vllm import LLM

    own = {"skip_tokenizer_init": True, "disable_log_stats": False}
    return LLM(model=write_config(shape, **(changes or {})), **DEFAULTS | own | settings)


def profiler_settings(folder: Path) -> dict[str, Any]:
    """Engine arguments with which :func:`profile` works; traces go to the folder."""
    return {
        "profiler_config": {
            "profiler": "torch",
            "torch_profiler_dir": str(folder),
            "torch_profiler_with_stack": False,
            "torch_profiler_dump_cuda_time_total": False,
            "ignore_frontend": True,
        }
    }


def profile(llm: Any, work: Workload, folder: Path, name: str) -> Path:
    """Runs a workload once under every rank's profiler; returns the first rank's trace."""
    llm.start_profile(name)
    run(llm, work, repeats=1, warm=0)
    llm.stop_profile()
    (trace,) = folder.glob(f"{name}_*rank0.*json*")
    return trace


def stop(llm: Any) -> None:
    """Ends an engine and frees its memory."""
    import torch

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    torch.cuda.empty_cache()


def parameters(work: Workload) -> Any:
    """Sampling parameters of a workload's requests."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    extra = None
    if work.steps is not None:
        extra = DiffusionParams(
            algorithm="low_confidence_static",
            block_length=work.block,
            steps=work.steps,
            rows=None if work.candidates is None else "elastic",
            row_candidates=work.candidates,
        ).to_extra_args()
    return SamplingParams(
        temperature=0.0,
        max_tokens=work.tokens,
        ignore_eos=True,
        detokenize=False,
        seed=SEED if extra else None,
        extra_args=extra,
    )


def run(llm: Any, work: Workload, repeats: int = 3, warm: int = 1) -> Timing:
    """Runs a workload several times; every run has other prompts, all runs of a seed the same."""
    rng = random.Random(SEED)
    vocabulary = min(100_000, llm.llm_engine.model_config.get_vocab_size() - 100)
    params = parameters(work)
    seconds, forwards = [], 0
    for i in range(warm + repeats):
        prompts = [
            {"prompt_token_ids": [rng.randrange(1000, vocabulary) for _ in range(work.prompt)]}
            for _ in range(work.batch)
        ]
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        if i >= warm:
            seconds.append(time.perf_counter() - begin)
        for output in outputs:
            assert len(output.outputs[0].token_ids) == work.tokens
        report = outputs[0].outputs[0].diffusion
        forwards = report.steps if work.steps is not None else work.tokens
    median = statistics.median(seconds)
    return Timing(median, work.batch * work.tokens / median, forwards, repeats)
