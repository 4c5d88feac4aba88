# SPDX-License-Identifier: Apache-2.0
"""Built-in policies whose number of positions per step depends on what the model says."""
