# SPDX-License-Identifier: Apache-2.0
"""Whose code a class is."""


def is_plug_in(cls: type) -> bool:
    """Whether a class is not of this distribution."""
    return cls.__module__.partition(".")[0] != "vllm"
