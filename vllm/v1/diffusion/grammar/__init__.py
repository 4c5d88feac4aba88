# SPDX-License-Identifier: Apache-2.0
"""A request's grammar on its open block."""
