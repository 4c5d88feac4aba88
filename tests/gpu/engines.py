# SPDX-License-Identifier: Apache-2.0
"""Engines on a GPU, in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine.cases import run
from tests.engine.conftest import GOLDEN

GRAPHS: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL"}}
EAGER: dict[str, Any] = {"enforce_eager": True}


@contextmanager
def engine(model: str, **settings: Any) -> Iterator[Any]:
    """An engine in this process, given back at the end."""
    import torch

    from vllm import LLM

    common: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "gpu_memory_utilization": 0.15,
        "kv_cache_memory_bytes": 2**30,
        "disable_log_stats": False,
        "seed": 0,
    }
    llm = LLM(model=model if Path(model).is_absolute() else str(GOLDEN / model), **common | settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        torch.cuda.empty_cache()


def check_together_and_alone(llm: Any, cases: list[dict[str, Any]], family: Any) -> None:
    """A batch of all cases twice, then some alone."""
    twice = cases + cases[::-1]
    results = run(llm, [family.of_golden(case) for case in twice])
    for result, case in zip(results, twice, strict=True):
        family.check(result, case)
    for case in cases[:4]:
        family.check(run(llm, [family.of_golden(case)])[0], case)
