# SPDX-License-Identifier: Apache-2.0
"""Accuracy against tokens per forward: problems with checkers, ways of decoding, tables and curves."""
