# SPDX-License-Identifier: Apache-2.0
"""The worker's part of the mode in which drafts are verified token by token."""
