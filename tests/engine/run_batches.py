# SPDX-License-Identifier: Apache-2.0
"""Runs batches of requests, given as JSON on standard input; see ``conftest.py``."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.engine.cases import Case, run


def main() -> None:
    """Reads a task, runs it, prints the results as the last line."""
    from vllm import LLM

    task = json.load(sys.stdin)
    free_rows = task["settings"].pop("free_rows", None)
    llm = LLM(**task["settings"])
    if free_rows is not None:
        # In this process only: windows as a GPU's scheduler plans them.
        client: Any = llm.llm_engine.engine_core
        client.engine_core.scheduler._free_rows = free_rows
    results = []
    for batch in task["batches"]:
        given: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in c.items()} for c in batch
        ]
        cases = [Case(**fields) for fields in given]
        counters = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
        results.append([*run(llm, cases), {}])
        after = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
        results[-1][-1] = {k: v - counters.get(k, 0) for k, v in after.items()}
    llm.llm_engine.engine_core.shutdown()
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
