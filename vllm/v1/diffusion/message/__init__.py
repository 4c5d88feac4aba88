# SPDX-License-Identifier: Apache-2.0
"""What crosses between the engine core and the workers."""
