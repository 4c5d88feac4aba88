# SPDX-License-Identifier: Apache-2.0
"""The operators of ``csrc/``, one module each, with their references and tolerances."""
