# SPDX-License-Identifier: Apache-2.0
"""No step takes more memory than the engine was given: the profile saw the largest one."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.engine import start, stop

SHARE = 0.3


def test_the_largest_steps_fit_beside_the_cache() -> None:
    """A large vocabulary, a cache that takes all that is left, and whatever makes copies of logits."""
    import torch

    from vllm import SamplingParams

    torch.cuda.empty_cache()
    llm: Any = start(
        "sdar-8b",
        {"num_hidden_layers": 1},
        max_num_seqs=128,
        max_model_len=512,
        diffusion_config={"block_length": 32},
        gpu_memory_utilization=SHARE,
        enforce_eager=True,
    )
    try:
        torch.cuda.reset_peak_memory_stats()
        kinds: list[dict[str, Any]] = [
            {"temperature": 0.8, "seed": 3, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
            {"temperature": 0.0, "extra_args": {"diffusion_algorithm": "credit", "diffusion_threshold": 0.9}},
            {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 5},
        ]
        for some in ([kind] * 128 for kind in kinds):
            common = {"max_tokens": 64, "ignore_eos": True, "detokenize": False}
            params = [SamplingParams(**common, **one) for one in some]  # type: ignore[arg-type]
            prompts = [{"prompt_token_ids": list(range(1000 + i, 1032 + i))} for i in range(len(params))]
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert all(len(output.outputs[0].token_ids) == 64 for output in outputs)
        total = torch.cuda.get_device_properties(0).total_memory
        assert torch.cuda.max_memory_reserved() <= SHARE * total
    finally:
        stop(llm)
