# SPDX-License-Identifier: Apache-2.0
"""Built-in policies that unmask a number of positions per step that is known in advance."""
