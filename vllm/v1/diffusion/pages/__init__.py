# SPDX-License-Identifier: Apache-2.0
"""Pages that show a canvas: what they have in common."""
