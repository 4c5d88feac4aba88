# SPDX-License-Identifier: Apache-2.0
"""From logits to unmasked positions and emitted blocks."""
