# SPDX-License-Identifier: Apache-2.0
"""Policies whose drafts the model verifies token by token before they are written."""
