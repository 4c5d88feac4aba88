# SPDX-License-Identifier: Apache-2.0
"""Built-in policies that say as a whole what a block is to be: tokens are inserted, deleted or moved."""
