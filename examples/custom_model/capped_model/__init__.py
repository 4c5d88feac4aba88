# SPDX-License-Identifier: Apache-2.0
"""An SDAR whose logits are capped, as a package of its own."""
