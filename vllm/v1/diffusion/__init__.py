# SPDX-License-Identifier: Apache-2.0
"""Serving of masked diffusion language models."""

from vllm.v1.diffusion.bundled import bundled_path

__all__ = ["bundled_path"]
