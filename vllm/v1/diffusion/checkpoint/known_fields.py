# SPDX-License-Identifier: Apache-2.0
"""The fields of ``config.json`` that each family's configuration class knows.

A field that no table has is refused where it is set: it may change what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OFF = (None, False)


def names(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


@dataclass(frozen=True)
class KnownFields:
    """What one configuration class knows.

    Attributes:
        read: Fields that decide what the model computes, or how it is denoised; any value.
        fixed: Fields of what the network has in one form only, and the values that mean that form.
        unread: Fields that the family's files hold and that change nothing.
        follows: Fields that the network does not read, and what they must be by the others.
        nested: Fields that hold a configuration, and what it knows.
    """

    read: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    follows: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    nested: Mapping[str, KnownFields] = field(default_factory=dict)

    def including(
        self,
        *read: str,
        fixed: Mapping[str, tuple[Any, ...]] | None = None,
        unread: tuple[str, ...] = (),
    ) -> KnownFields:
        """The same with more fields; a field moves to the table that is given last."""
        fixed = fixed or {}
        kept = {
            name: values for name, values in self.fixed.items() if name not in read and name not in unread
        }
        return replace(
            self,
            read=(self.read | {*read}) - {*fixed} - {*unread},
            fixed={**kept, **fixed},
            unread=self.unread | {*unread},
        )

    def following(self, **follows: Callable[[Mapping[str, Any]], Any]) -> KnownFields:
        """The same with fields that follow from others."""
        return replace(self, read=self.read - {*follows}, follows={**self.follows, **follows})


BOOKKEEPING = frozenset(
    names(
        """
        _attn_implementation _attn_implementation_internal _commit_hash _name_or_path architectures
        attn_implementation auto_map begin_suppress_tokens bos_token_id chunk_size_feed_forward
        decoder_start_token_id dtype early_stopping eos_token_id finetuning_task forced_bos_token_id
        forced_eos_token_id gradient_checkpointing id2label initializer_range label2id model_type
        name_or_path output_attentions output_hidden_states output_scores pad_token_id prefix
        problem_type quantization_config remove_invalid_values return_dict return_dict_in_generate
        sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class
        top_k top_p torch_dtype torchscript transformers_version typical_p unk_token_id use_bfloat16
        use_cache unsloth_fixed unsloth_version do_sample length_penalty max_length max_new_tokens
        min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
        repetition_penalty diversity_penalty bad_words_ids encoder_no_repeat_ngram_size
        exponential_decay_length_penalty
        """
    )
)
"""Fields that transformers writes for itself, for its generation or for training."""

TRAINING = ("dropout", "pdrop", "aux_loss", "loss_coef", "loss_weight", "init_std", "z_loss")
"""Parts of names of fields that act in training only."""

ROPE = frozenset(
    names(
        """
        attention_factor beta_fast beta_slow factor finetuned high_freq_factor long_factor
        low_freq_factor mscale mscale_all_dim original_max_position_embeddings partial_rotary_factor
        rope_theta rope_type short_factor truncate type
        """
    )
)
"""What ``rope_scaling`` and ``rope_parameters`` may hold."""

ROPE_FIELDS = ("rope_scaling", "rope_parameters")


def _head_dim(config: Mapping[str, Any]) -> Any:
    return config["hidden_size"] // config["num_attention_heads"]


def _rotary_dim(config: Mapping[str, Any]) -> Any:
    head_dim = config.get("head_dim") or _head_dim(config)
    return int(head_dim * config.get("partial_rotary_factor", 0.5))


_SHAPE = names(
    """
        head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads
        num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta
        tie_word_embeddings vocab_size block_size mask_token_id stop_at_eos
        """
)

_ONE_FORM: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": OFF,
    "alibi": OFF,
    "cross_attention_hidden_size": OFF,
    "hidden_act": ("silu",),
    "is_causal": (True, None),
    "is_decoder": OFF,
    "is_encoder_decoder": OFF,
    "no_rope_layers": (None, []),
    "pruned_heads": (None, {}),
    "rope": (True, None),
    "tie_encoder_decoder": OFF,
    "use_mrope": OFF,
    "use_rope": (True, None),
}
"""What no network here has in another form."""

_WINDOW: dict[str, tuple[Any, ...]] = {"use_sliding_window": OFF, "layer_types": ("full_attention",)}
"""No network here has sliding windows; a list of layers' types must name nothing else."""
_WINDOW_SIZES = ("sliding_window", "max_window_layers")
"""Without effect where ``use_sliding_window`` is off."""

_BACKBONE = KnownFields(frozenset(_SHAPE), {**_ONE_FORM, **_WINDOW}, frozenset(_WINDOW_SIZES))
QWEN2 = _BACKBONE.including(fixed={"qk_norm": OFF, "use_qk_norm": OFF}).following(head_dim=_head_dim)
QWEN3 = _BACKBONE.including("attention_bias", fixed={"qk_norm": (True, None), "use_qk_norm": (True, None)})
QWEN3_MOE = QWEN3.including(
    *names("decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob num_experts"),
    *names("num_experts_per_tok num_local_experts"),
    unread=("output_router_logits",),
)
LLAMA = _BACKBONE.including(
    "attention_bias", "mlp_bias", fixed={"qk_norm": OFF, "use_qk_norm": OFF}, unread=("pretraining_tp",)
)

_SLIDING = ("use_sliding_window", "layer_types")
"""Without effect on A2D's networks, which have no such layers."""

_SDAR = ("debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep")
"""What SDAR's published configurations say of its training."""

_GEMMA_TEXT = KnownFields(
    frozenset(
        {
            *names(
                "attention_bias final_logit_softcapping global_head_dim head_dim hidden_size "
                "intermediate_size"
            ),
            *names(
                "layer_types max_position_embeddings moe_intermediate_size num_attention_heads num_experts"
            ),
            *names(
                "num_global_key_value_heads num_hidden_layers num_key_value_heads per_layer_config "
                "rms_norm_eps"
            ),
            *names("rope_parameters sliding_window top_k_experts use_bidirectional_attention vocab_size"),
            # The configuration class refuses other forms of these.
            *names("attention_k_eq_v hidden_activation tie_word_embeddings"),
        }
    ),
    {name: _ONE_FORM[name] for name in ("is_causal", "is_decoder", "add_cross_attention")},
)

_LLADA2 = _BACKBONE.including(
    *names("expert_capacity first_k_dense_replace moe_intermediate_size n_group num_experts"),
    *names("num_experts_per_tok num_shared_experts partial_rotary_factor routed_scaling_factor topk_group"),
    *names("use_qk_norm use_qkv_bias"),
    fixed={
        "moe_router_enable_expert_bias": (True, None),
        "norm_head": OFF,
        "norm_softmax": OFF,
        "norm_topk_prob": (True, None),
        "num_nextn_predict_layers": (0, None),
        "score_function": ("sigmoid", None),
        "use_bias": OFF,
        "use_rmsnorm": (True, None),
    },
    unread=("output_router_logits", "router_dtype"),
).following(rotary_dim=_rotary_dim)

KNOWN_FIELDS: dict[str, KnownFields] = {
    "SDAR": QWEN3.including(unread=_SDAR),
    "SDAR-MoE": QWEN3_MOE.including(unread=_SDAR),
    "A2D-Llama": LLAMA,
    "A2D-Qwen2": QWEN2.including(unread=_SLIDING),
    "A2D-Qwen3": QWEN3.including(unread=_SLIDING),
    "DiffusionGemma": KnownFields(
        frozenset({*names("block_size canvas_length tie_word_embeddings vocab_size")}),
        {name: _ONE_FORM[name] for name in ("hidden_act", "is_causal", "is_decoder")},
        # Of images, which are not read.
        frozenset(
            names("boi_token_id eoi_token_id image_token_id vision_config vision_soft_tokens_per_image")
        ),
        nested={"text_config": _GEMMA_TEXT},
    ),
    "Dream": QWEN2,
    "DreamOn": QWEN2.including("expand_token_id"),
    "Open-dLLM": QWEN2,
    "Stable-DiffCoder": LLAMA.including(unread=("layer_norm_eps",)),
    "Fast-dLLM v2": QWEN2.including("bd_size"),
    "WeDLM": QWEN3,
    "WeDLM-Qwen2": QWEN2.including("attention_bias"),
    "LLaDA2": _LLADA2,
    "LLaDA2.2": _LLADA2.including("delete_token_id", "split_token_id"),
    "Nemotron-Labs-Diffusion": replace(
        LLAMA.including(
            "ar_mode",
            "canvas_length",
            fixed={
                "attention_bias": OFF,
                "dlm_paradigm": ("bidirectional", None),
                "mlp_bias": OFF,
                "sliding_window": (None,),
            },
            unread=("dp_varying_mask_ratio",),
        ),
        # Queries grow with their position.
        nested={"rope_parameters": KnownFields(ROPE | {"llama_4_scaling_beta", "max_position_embeddings"})},
    ),
    # Llama's names too: so a configuration is that the engine has saved.
    "LLaDA": LLAMA.including(
        *names("activation_type alibi attention_layer_norm bias_for_layer_norm block_group_size block_type"),
        *names("d_model embedding_size include_bias include_qkv_bias input_emb_norm layer_norm_type"),
        *names("layer_norm_with_affine logit_scale max_sequence_length mlp_hidden_size mlp_ratio"),
        *names("multi_query_attention n_heads n_kv_heads n_layers qkv_bias rope scale_logits weight_tying"),
        unread=(
            *names("alibi_bias_max attention_layer_norm_with_affine flash_attention init_cutoff_factor"),
            *names("init_device init_fn precision rope_full_precision"),
        ),
    ),
    "LLaDA-MoE": _BACKBONE.including(
        *names("clip_qkv dense_intermediate_size expert_intermediate_size moe_layer_freq norm_topk_prob"),
        *names("num_experts num_experts_per_tok partial_rotary_factor qk_layernorm"),
        # The configuration class refuses other forms of these.
        *names("attention_bias moe_router_enable_expert_bias moe_router_score_function"),
        *names("routed_scaling_factor shared_expert_intermediate_size"),
        fixed={
            "router_num_group": (None,),
            "router_topk_group": (None,),
            "router_topk_scaling_factor": (None,),
        },
        unread=("layernorm_epsilon", "output_router_logits"),
    ),
}
"""By the family's name in ``families.py``."""
