# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""What Model Runner V2 can do where Triton cannot run, asked when the configuration is checked.

A launch of a Triton kernel that nobody replaced would end the engine in the middle of a request, so
every feature that leads to one is refused at start, and so is what upstream has no CPU kernel for.
"""

from vllm.config import VllmConfig
from vllm.platforms import current_platform

__all__ = ["check_runner_support"]


def _unsupported(config: VllmConfig) -> list[str]:
    parallel = config.parallel_config
    model = config.model_config
    features = {
        "speculative decoding": config.speculative_config is not None,
        "models with Mamba layers": model is not None and (model.is_hybrid or model.is_attention_free),
        "watermarking": getattr(config, "watermark_config", None) is not None,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "batch-sharded sampling": bool(parallel.enable_batch_sharded_sampling),
        # The layer of experts is chosen by whether there may be adapters at all, for whatever layers.
        "enable_lora with models of experts": bool(config.lora_config and model and model.is_moe),
        "quantization='fp8'": model is not None and model.quantization == "fp8",
    }
    return [name for name, wanted in features.items() if wanted]


def check_runner_support(config: VllmConfig) -> None:
    """Refuses what Model Runner V2 cannot do without Triton.

    Args:
        config: of an engine that is to use Model Runner V2.

    Raises:
        ValueError: on anything but a CPU, or for a feature that has no kernel there.
    """
    if not current_platform.is_cpu():
        raise ValueError("Model Runner V2 requires Triton.")
    if unsupported := _unsupported(config):
        raise ValueError(
            f"Model Runner V2 on a CPU without Triton does not support: {', '.join(unsupported)}."
        )
