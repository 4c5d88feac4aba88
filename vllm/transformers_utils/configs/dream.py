# SPDX-License-Identifier: Apache-2.0
"""Configuration and tokenizer of Dream models."""

from transformers import AutoTokenizer, Qwen2Config, Qwen2Tokenizer


class DreamConfig(Qwen2Config):  # type: ignore[no-untyped-call]
    """Qwen2's configuration; ``mask_token_id`` is kept as given."""

    model_type = "Dream"


class DreamTokenizer(Qwen2Tokenizer):
    """Qwen2's byte-level BPE, under the name that published ``tokenizer_config.json`` give it.

    Published folders hold ``vocab.json`` and ``merges.txt``, and code that is not run.
    """


# Whoever loads a tokenizer has read the configuration before, and with it this module.
AutoTokenizer.register(DreamConfig, DreamTokenizer, exist_ok=True)  # type: ignore[no-untyped-call]
