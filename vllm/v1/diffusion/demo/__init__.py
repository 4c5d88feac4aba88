# SPDX-License-Identifier: Apache-2.0
"""Tasks with answers that can be checked."""
