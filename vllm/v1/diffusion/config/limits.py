# SPDX-License-Identifier: Apache-2.0
"""What bounds the work that one request may ask for."""

from __future__ import annotations

from vllm.v1.diffusion.config.accepted import MaskedDiffusionConfig
from vllm.v1.diffusion.config.setting import DEFAULT, GIVEN, Setting, first

LIMITS = {
    "steps_limit": 256,
    "post_steps_limit": 256,
    "bad_word_limit": 64,
    "bad_words_limit": 1024,
    "grammar_limit": 65536,
    "repetition_limit": 1024,
    "grammar_time_limit": 100,
    "n_limit": 128,
    "score_samples_limit": 1024,
    "candidates_limit": 262144,
}
"""What bounds the work that one request may ask for, where the operator has not said it."""


MONTE_CARLO, SAMPLES = "monte_carlo", 128
"""The estimator of log probabilities that samples, and how often where nobody says."""

CAUSAL = (
    "a token sees no later block, so a text of which random parts are masked says nothing of the whole; "
    "use left_to_right"
)
"""Why models whose blocks follow each other have no ``monte_carlo``; reads after a colon."""

MOST_READINGS = 2**22
"""Tokens of a vocabulary, times counts of a grammar, that may be tried for one mask by default."""

FEW_ANSWERS = 16
"""Answers that a request may always ask for at a time, however few requests run at a time."""


def limit_of(config: MaskedDiffusionConfig, name: str) -> int:
    """A limit of ``LIMITS``: the operator's, else the default."""
    given = getattr(config, name)
    return LIMITS[name] if given is None else int(given)


def work_limits(given: MaskedDiffusionConfig, found: dict[str, Setting]) -> dict[str, Setting]:
    """What bounds a request's work. What holds for all requests is within the bounds."""
    limits = {name: first((getattr(given, name), GIVEN), (most, DEFAULT)) for name, most in LIMITS.items()}
    if given.repetition_limit is None:
        most = f"{LIMITS['repetition_limit']}, and {MOST_READINGS} divided by the vocabulary's size, at most"
        limits["repetition_limit"] = Setting(None, most)
    if given.n_limit is None:
        limits["n_limit"] = Setting(None, f"half of max_num_seqs, {LIMITS['n_limit']} at most")
    for name, limit in (
        ("steps", "steps_limit"),
        ("max_post_steps", "post_steps_limit"),
        ("score_samples", "score_samples_limit"),
    ):
        value = found[name].value if name in found else None
        if value is None or value <= limits[limit].value:
            continue
        if limits[limit].source == GIVEN and (name != "steps" or value > found["block_length"].value):
            raise ValueError(
                f"diffusion_config: {name}={value} ({found[name].source}) must be at most "
                f"{limit}={limits[limit].value}."
            )
        limits[limit] = Setting(value, found[name].source)
    return limits
