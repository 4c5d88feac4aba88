# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` tells of denoising, beside upstream's counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.utils import create_metric_per_engine

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TOKENS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class DiffusionProm:
    """Two histograms of an engine with a diffusion configuration; else none."""

    def __init__(
        self,
        histogram_cls: Any,
        vllm_config: VllmConfig,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        """Registers the histograms.

        Args:
            histogram_cls: Prometheus' ``Histogram`` or Ray's.
            vllm_config: The engines' configuration.
            labelnames: Labels of every metric.
            per_engine_labelvalues: Their values, by engine.
        """
        self._steps: dict[int, Any] = {}
        self._tokens: dict[int, Any] = {}
        if vllm_config.diffusion_config is None:
            return

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> dict[int, Any]:
            made = histogram_cls(
                name=f"vllm:diffusion_{name}",
                documentation=documentation,
                labelnames=labelnames,
                buckets=buckets,
            )
            return create_metric_per_engine(made, per_engine_labelvalues)

        self._steps = histogram("steps_per_block", "Denoising steps of each block that finished.", _STEPS)
        self._tokens = histogram(
            "tokens_per_forward", "Output tokens of each ended request by its denoising steps.", _TOKENS
        )

    def observe(self, stats: SpecDecodingStats, engine: int) -> None:
        """Takes in an engine step's statistics."""
        for values, histograms in (
            (stats.steps_per_block, self._steps),
            (stats.tokens_per_forward, self._tokens),
        ):
            if values:
                add = histograms[engine].observe
                for value in values:
                    add(value)
