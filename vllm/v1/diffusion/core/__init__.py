# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side: windows, counts and failed requests. No tensors."""
