# SPDX-License-Identifier: Apache-2.0
"""Tells vLLM of the model; runs in every process, so it imports nothing heavy."""

from dataclasses import replace

ARCHITECTURE = "CappedForCausalLM"
"""What ``architectures`` of such a checkpoint's ``config.json`` says."""


def register() -> None:
    """Registers the model's class, and the family whose loop and defaults it takes."""
    from vllm import ModelRegistry
    from vllm.v1.diffusion.plugins import family_of_architectures, register_family

    ModelRegistry.register_model(ARCHITECTURE, "capped_model.model:CappedForCausalLM")
    sdar = family_of_architectures(["SDARForCausalLM"])
    assert sdar is not None
    register_family(replace(sdar, name="Capped SDAR", architectures=(ARCHITECTURE,)))
