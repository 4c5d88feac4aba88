# SPDX-License-Identifier: Apache-2.0
"""Every request's open block, on the device."""
