# SPDX-License-Identifier: Apache-2.0
"""What the command's tests share."""

from tests.cli.browser import browser

__all__ = ["browser"]
