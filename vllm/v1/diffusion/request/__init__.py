# SPDX-License-Identifier: Apache-2.0
"""What a request asks for, and what that amounts to with the engine's configuration."""
