# SPDX-License-Identifier: Apache-2.0
"""The built-in generation loops and the engine settings they need."""
