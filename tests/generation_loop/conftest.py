# SPDX-License-Identifier: Apache-2.0
"""Shares the golden cases of the engine's tests."""

from tests.engine.conftest import golden_cases

__all__ = ["golden_cases"]
