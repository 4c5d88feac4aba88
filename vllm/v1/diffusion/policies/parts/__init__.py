# SPDX-License-Identifier: Apache-2.0
"""Policies under which parts of a block are decided one after the other, or several at a time."""
