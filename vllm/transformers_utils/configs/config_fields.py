# SPDX-License-Identifier: Apache-2.0
"""Members of a ``config.json`` that a family's configuration does not know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vllm.logger import init_logger

logger = init_logger(__name__)

_OF_TRAINING = ("dropout", "_loss_weight", "_loss_coef", "initializer_range")
"""Ends of names that say how a checkpoint was trained."""

_OF_NO_EFFECT = frozenset(
    {
        "architectures", "attn_implementation", "auto_map", "chunk_size_feed_forward", "dtype",
        "finetuning_task", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "model_type",
        "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "output_router_logits",
        "prefix", "problem_type", "quantization_config", "return_dict", "task_specific_params",
        "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Names that every library writes, or that upstream reads whatever the family."""


def refuse_unknown(model_type: str, members: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuses members whose effect nobody here knows.

    A member that switches something off (null or false) cannot change what a network computes, nor can
    one of training; those are named in a log line.

    Args:
        model_type: Of the configuration.
        members: What the file says and no field of the configuration class takes.
        known: Names of members that are understood elsewhere or say nothing new.

    Raises:
        ValueError: Names the first member that may change the mathematics.
    """
    harmless = []
    for name, value in members.items():
        if name in known or name in _OF_NO_EFFECT or name.startswith("_"):
            continue
        if value is None or value is False or name.endswith(_OF_TRAINING):
            harmless.append(name)
            continue
        raise ValueError(
            f"{model_type}: config.json has {name}={value!r}, which is not known and may change what the "
            "model computes. If it does not, set it to null."
        )
    if harmless:
        logger.info("%s: members of config.json without effect: %s.", model_type, ", ".join(sorted(harmless)))
