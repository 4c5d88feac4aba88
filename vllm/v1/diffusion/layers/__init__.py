# SPDX-License-Identifier: Apache-2.0
"""Layers that take the kernels of ``kernels/`` in the place of upstream's."""
