# SPDX-License-Identifier: Apache-2.0
"""What the process of ``warm.py`` imports: all that an engine does, and nothing that starts a thread."""

from __future__ import annotations

import gc
import importlib
import os
from contextlib import suppress

# torch reads these when it is imported; vLLM sets them before it spawns a process.
os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}

NAMES = (
    "vllm.entrypoints.llm",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.diffusion.loops.block",
    "vllm.v1.diffusion.worker.model_state",
    "vllm.model_executor.models.dream",
    "vllm.model_executor.models.sdar",
    "vllm.model_executor.models.sdar_moe",
)
ON_A_CPU = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.attention.backends.cpu_attn",
)
"""On another device these would change it: they put functions for CPUs in the place of others."""


def _names() -> tuple[str, ...]:
    with suppress(ImportError):
        from vllm.platforms import current_platform

        return (*NAMES, *ON_A_CPU) if current_platform.is_cpu() else NAMES
    return NAMES


for _name in _names():
    # A tree without vLLM has no engines; a name that is gone costs time, and no more.
    with suppress(ImportError):
        importlib.import_module(_name)

# An engine collects garbage several times while it starts; what was imported is none.
gc.collect()
gc.freeze()
