# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's files say of it, read before an engine is built from them."""
