# SPDX-License-Identifier: Apache-2.0
"""Parsers that give other results in a stream than for the whole answer, even token by token.

With them an answer is held until it ends, and its last delta has all of it. So a stream has the calls,
content and reasoning of the whole response. ``tests/server/test_parsers.py`` tries every parser that upstream
registers.
"""

from __future__ import annotations

HELD_TOOL_PARSERS = frozenset(
    {
        # They lose or tear calls.
        *("gigachat3", "granite-20b-fc", "hunyuan_a13b", "jamba", "llama3_json", "llama4_json", "olmo3"),
        # Their formats are not tried here.
        *("cohere_command3", "cohere_command4", "deepseek_v32", "deepseek_v4", "deepseek_v41", "dots"),
        *("gemma4", "hf", "hy_v3", "hy_v4", "inkling", "k2_horizon", "kimi_k3", "ling3", "minicpm5"),
        *("minimax_m3", "muse_glimmer", "openai", "phi4_mini_json", "plamo3", "poolside_v1", "step3"),
    }
)
"""By the names of ``--tool-call-parser``; they hold answers to requests that offer tools."""

HELD_REASONING_PARSERS = frozenset(
    {
        # Their streams keep marks of the answer, or lose the reasoning.
        *("ernie45", "gemma4", "granite", "hunyuan_a13b", "muse_glimmer"),
        # Their formats are not tried here.
        *("cohere_command3", "cohere_command4", "hf", "inkling", "k2_horizon", "kimi_k3", "minimax_m3"),
        *("olmo3", "openai_gptoss", "plamo3", "poolside_v1"),
    }
)
"""By the names of ``--reasoning-parser``."""
