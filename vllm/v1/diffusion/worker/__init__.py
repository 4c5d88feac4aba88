# SPDX-License-Identifier: Apache-2.0
"""The model runner's side: a step's inputs, attention and adapters."""
