# SPDX-License-Identifier: Apache-2.0
"""The length of an answer whose request names none.

Upstream fills in what the prompt leaves of the context. For a bidirectional model that would be the length of
the canvas, all of which it writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.policies.parameter import PREFIX

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TEMPLATES = tuple(PREFIX + name for name in ("infill", "infill_ids", "seed_canvas"))
"""Parameters that are the whole answer, and its length."""


def name_length(request: Any, vllm_config: VllmConfig) -> None:
    """Fills in the length of a request to the server.

    Args:
        request: The request's body, parsed; changed.
        vllm_config: The engine's configuration.
    """
    names = [name for name in _NAMES if name in type(request).model_fields]
    if not names or any(getattr(request, name) is not None for name in names):
        return
    length = resolve_diffusion_config(vllm_config).default_max_tokens
    if length is not None and not _has_template(getattr(request, "vllm_xargs", None)):
        setattr(request, names[0], length)


def set_length(params: SamplingParams, vllm_config: VllmConfig) -> None:
    """Fills in ``max_tokens`` of a request from Python that names none.

    Args:
        params: The request's own copy of its parameters, changed.
        vllm_config: The engine's configuration.
    """
    length = resolve_diffusion_config(vllm_config).default_max_tokens
    if params.max_tokens is None and length is not None and not _has_template(params.extra_args):
        params.max_tokens = max(length, params.min_tokens)


def _has_template(extra: Any) -> bool:
    return any((extra or {}).get(name) is not None for name in _TEMPLATES)
