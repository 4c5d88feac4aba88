"""What holds for each field of upstream's requests that a diffusion model accepts.

``compatibility.py`` finds by trying which fields those are, and makes the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_UPSTREAM = "as upstream"
_LABEL = "says who asks, and changes nothing of the answer, as upstream"
_TEMPLATE = "handed to the chat template, as upstream"
_PARSERS = "as upstream, where the server is started with the parser"
_TEXT = "as upstream: how text is made of tokens"
_PROMPT = "as upstream: how the prompt is made"
_SETTLED = "of the canvas as it stands: tokens unmasked so far, in any order"


@dataclass(frozen=True)
class Entry:
    """One field.

    Attributes:
        note: What holds where it is accepted.
        example: Members of a request that ask for it, where it may be refused.
        message: The refusal, where it comes from upstream's server and not from a check of a
            request alone; its beginning.
        partly: Whether the example is refused for its values or its company, not for the field.
    """

    note: str
    example: dict[str, Any] | None = None
    message: str = ""
    partly: bool = False


SAMPLING = {
    "allowed_token_ids": Entry(_UPSTREAM, {"allowed_token_ids": [49, 50]}),
    "bad_words": Entry(
        "a word of several tokens is kept from standing together, in whatever order they unmask",
        {"bad_words": ["1"]},
    ),
    "frequency_penalty": Entry(f"counts the tokens {_SETTLED}", {"frequency_penalty": 1.0}),
    "ignore_eos": Entry(_UPSTREAM),
    "include_stop_str_in_output": Entry(_TEXT),
    "logit_bias": Entry(_UPSTREAM, {"logit_bias": {"5": 1.0}}),
    "logprob_token_ids": Entry("at the step that unmasked the position", {"logprob_token_ids": [5]}),
    "logprobs": Entry(
        "of the token, and the most probable ones, at the step that unmasked it", {"logprobs": 1}
    ),
    "max_tokens": Entry("any number, no multiple of the block; the canvas of bidirectional models"),
    "min_p": Entry(
        "as upstream; at temperature 0 it can change no token", {"min_p": 0.1, "temperature": 1.0}
    ),
    "min_tokens": Entry("no end or stop token before it", {"min_tokens": 5}),
    "n": Entry("at temperature 0 one, as upstream", {"n": 2, "temperature": 0.0}, partly=True),
    "presence_penalty": Entry(f"counts the tokens {_SETTLED}", {"presence_penalty": 1.0}),
    "prompt_logprobs": Entry(
        "by the estimator `diffusion_likelihood`, from index `diffusion_score_from` on; not on all families",
        {"prompt_logprobs": 1},
    ),
    "repetition_detection": Entry(
        _UPSTREAM, {"repetition_detection": {"max_pattern_size": 2, "min_count": 3}}
    ),
    "repetition_penalty": Entry(f"counts the prompt and the tokens {_SETTLED}", {"repetition_penalty": 1.5}),
    "routed_experts_prompt_start": Entry(_UPSTREAM, {"routed_experts_prompt_start": 3}),
    "seed": Entry("the same answer whatever shares the batch"),
    "skip_special_tokens": Entry(_TEXT),
    "spaces_between_special_tokens": Entry(_TEXT),
    "stop": Entry("also across blocks and in the middle of one; text is cut exactly"),
    "stop_token_ids": Entry("also in the middle of a block"),
    "stream_interval": Entry(
        "tokens that a chunk of a stream has at least", {"stream_interval": 3}, partly=True
    ),
    "structured_outputs": Entry(
        "JSON schema, regex, choice and grammar, enforced on the canvas",
        {"structured_outputs": {"regex": "[0-9]+"}},
    ),
    "temperature": Entry("of the token at a position; 0 takes the most probable"),
    "thinking_token_budget": Entry(
        _UPSTREAM,
        {"thinking_token_budget": 5},
        "thinking_token_budget is set but reasoning_config is not configured",
    ),
    "top_k": Entry("as upstream; at temperature 0 it can change no token, but Dream's confidence"),
    "top_p": Entry("as upstream; at temperature 0 it can change no token, but Dream's confidence"),
    "watermarking": Entry(_UPSTREAM, {"watermarking": True}),
}
"""Fields of ``SamplingParams`` that requests of the server have too."""

PYTHON_ONLY = {
    "detokenize": Entry(_TEXT),
    "extra_args": Entry(
        "the members of [`DiffusionParams`](parameters.md)", {"extra_args": {"anything": 1}}, partly=True
    ),
    "flat_logprobs": Entry(
        "the form of log probabilities, as upstream", {"flat_logprobs": True, "logprobs": 1}
    ),
    "greedy_filters": Entry("set by the object itself: `top_k` and `top_p` as given at temperature 0"),
    "output_kind": Entry(_UPSTREAM),
    "output_text_buffer_length": Entry("set by upstream, from the stop strings"),
    "prompt_logprob_start": Entry(_UPSTREAM, {"prompt_logprob_start": 2, "prompt_logprobs": 1}),
    "prompt_logprob_token_ids": Entry(_UPSTREAM, {"prompt_logprob_token_ids": [5]}),
    "skip_clone": Entry("whether the object may be kept, as upstream"),
    "skip_reading_prefix_cache": Entry(_UPSTREAM),
    "trace_decode_token_ids": Entry(_UPSTREAM, {"trace_decode_token_ids": [5]}),
}
"""Its other fields."""

REQUEST = {
    "model": Entry(_UPSTREAM),
    "echo": Entry("as upstream; with `logprobs` those of the prompt too, see `prompt_logprobs`"),
    "stream": Entry("a block at a time"),
    "stream_options": Entry("`include_usage` and `continuous_usage_stats`, as upstream"),
    "user": Entry(_LABEL),
    "request_id": Entry(_LABEL),
    "session_id": Entry(_LABEL),
    "cache_salt": Entry("separates cached prefixes; bidirectional models have none"),
    "use_beam_search": Entry(_UPSTREAM, {"use_beam_search": True}),
    "length_penalty": Entry(_UPSTREAM, {"length_penalty": 2.0}),
    "priority": Entry("with `--scheduling-policy priority`, as upstream", {"priority": 3}, partly=True),
    "truncate_prompt_tokens": Entry(_PROMPT),
    "truncation_side": Entry(
        "with `truncate_prompt_tokens`, as upstream", {"truncation_side": "left"}, partly=True
    ),
    "add_special_tokens": Entry(_PROMPT),
    "response_format": Entry(
        "`json_object`, `json_schema` and `structural_tag`, enforced on the canvas",
        {"response_format": {"type": "json_object"}},
    ),
    "return_tokens_as_token_ids": Entry("with `logprobs`, as upstream; without, it asks for nothing"),
    "return_token_ids": Entry(_UPSTREAM),
    "return_token_offsets": Entry(_UPSTREAM, {"return_token_offsets": True}),
    "return_weight_versions": Entry(_UPSTREAM),
    "mm_payload": Entry(_UPSTREAM, {"mm_payload": "none"}),
    "return_mm_kwargs": Entry(_UPSTREAM, {"return_mm_kwargs": False}),
    "kv_transfer_params": Entry(_UPSTREAM, {"kv_transfer_params": {"a": 1}}),
    "ec_transfer_params": Entry(_UPSTREAM, {"ec_transfer_params": {"a": 1}}),
    "vllm_xargs": Entry(
        "the members of [`DiffusionParams`](parameters.md)", {"vllm_xargs": {"anything": 1}}, partly=True
    ),
}
"""Fields of both endpoints that never reach ``SamplingParams``."""

LATER = {"return_weight_versions"}
"""Fields with a verdict that only the release after the pin has."""

COMPLETION = {
    "prompt": Entry("text or token ids, one or several, as upstream"),
    "suffix": Entry(_UPSTREAM, {"suffix": "x"}, "suffix is only supported for models with FIM"),
    "logprob_token_ids": Entry(SAMPLING["logprob_token_ids"].note, {"logprob_token_ids": [5], "logprobs": 1}),
    "prompt_embeds": Entry(
        _UPSTREAM, {"prompt_embeds": "AAAA"}, "You must set `--enable-prompt-embeds` to input"
    ),
}
CHAT = {
    "messages": Entry(_UPSTREAM),
    "echo": Entry(_UPSTREAM, {"echo": True}),
    "max_completion_tokens": Entry("as `max_tokens`"),
    "logprobs": Entry(SAMPLING["logprobs"].note, {"logprobs": True}),
    "logprob_token_ids": Entry(
        SAMPLING["logprob_token_ids"].note, {"logprob_token_ids": [5], "logprobs": True}
    ),
    "top_logprobs": Entry("how many most probable tokens", {"logprobs": True, "top_logprobs": 2}),
    "tools": Entry(_PARSERS),
    "tool_choice": Entry(f"{_PARSERS}; `required` and a named tool are enforced on the canvas"),
    "parallel_tool_calls": Entry(_UPSTREAM),
    "reasoning_effort": Entry(_TEMPLATE),
    "include_reasoning": Entry(_PARSERS),
    "add_generation_prompt": Entry(_TEMPLATE),
    "continue_final_message": Entry(_TEMPLATE),
    "documents": Entry(_TEMPLATE),
    "chat_template_kwargs": Entry(_TEMPLATE),
    "chat_template": Entry(
        "with `--trust-request-chat-template`, as upstream",
        {"chat_template": "{{ messages }}"},
        "Chat template is passed with request, but --trust-request-chat-template is not set",
        partly=True,
    ),
    "media_io_kwargs": Entry(_UPSTREAM, {"media_io_kwargs": {"image": {"a": 1}}}),
    "mm_processor_kwargs": Entry(_UPSTREAM, {"mm_processor_kwargs": {"a": 1}}),
    "return_prompt_text": Entry(_UPSTREAM),
}

RESPONSES = {
    **{
        name: REQUEST[name]
        for name in (
            "cache_salt",
            "mm_payload",
            "model",
            "priority",
            "request_id",
            "return_mm_kwargs",
            "session_id",
        )
    },
    **{
        name: SAMPLING[name]
        for name in (
            "frequency_penalty",
            "ignore_eos",
            "include_stop_str_in_output",
            "logit_bias",
            "min_p",
            "presence_penalty",
            "repetition_penalty",
            "seed",
            "skip_special_tokens",
            "stop",
            "stop_token_ids",
            "structured_outputs",
            "temperature",
            "top_k",
            "top_p",
            "watermarking",
        )
    },
    **{name: CHAT[name] for name in ("include_reasoning", "media_io_kwargs", "mm_processor_kwargs")},
    **{name: REQUEST[name] for name in ("ec_transfer_params", "kv_transfer_params", "vllm_xargs")},
    "user": Entry(_LABEL),
    "background": Entry("as upstream, which needs its store of responses"),
    "chat_template_kwargs": Entry(_TEMPLATE),
    "enable_response_messages": Entry(_UPSTREAM),
    "include": Entry(_UPSTREAM),
    "input": Entry(_UPSTREAM),
    "instructions": Entry(_UPSTREAM),
    "max_output_tokens": Entry("as `max_tokens`"),
    "max_tool_calls": Entry(_UPSTREAM, {"max_tool_calls": 3}),
    "metadata": Entry(_LABEL),
    "parallel_tool_calls": Entry(_UPSTREAM),
    "previous_input_messages": Entry(_UPSTREAM),
    "previous_response_id": Entry("as upstream, which needs its store of responses"),
    "prompt": Entry("as upstream, which does not support OpenAI's prompt templates"),
    "prompt_cache_key": Entry(_LABEL),
    "reasoning": Entry(_TEMPLATE),
    "service_tier": Entry(_LABEL),
    "store": Entry("as upstream: kept only with `VLLM_ENABLE_RESPONSES_API_STORE=1`"),
    "stream": Entry("a block at a time"),
    "text": Entry("formats are enforced on the canvas", {"text": {"verbosity": "low"}}, partly=True),
    "tool_choice": Entry("refused where the server has no `--tool-call-parser`, as in a chat"),
    "tools": Entry(
        "functions, and what a `--tool-server` has", {"tools": [{"type": "web_search_preview"}]}, partly=True
    ),
    "top_logprobs": Entry(
        "with `include=['message.output_text.logprobs']`", {"top_logprobs": 2}, partly=True
    ),
    "truncation": Entry(_UPSTREAM),
}
"""Fields of a response; upstream hands what reaches ``SamplingParams`` on."""

MESSAGES = {
    **{name: REQUEST[name] for name in ("cache_salt", "model", "stream", "vllm_xargs")},
    **{name: SAMPLING[name] for name in ("temperature", "top_k", "top_p")},
    "chat_template_kwargs": Entry(_TEMPLATE),
    "max_tokens": Entry(SAMPLING["max_tokens"].note),
    "messages": Entry(_UPSTREAM),
    "metadata": Entry(_LABEL),
    "output_config": Entry("a JSON schema is enforced on the canvas; the effort goes to the chat template"),
    "stop_sequences": Entry(SAMPLING["stop"].note),
    "system": Entry(_UPSTREAM),
    "thinking": Entry(_TEMPLATE),
    "tool_choice": Entry(_PARSERS),
    "tools": Entry(_PARSERS),
}
"""Fields of Anthropic's messages, which upstream rewrites as a chat."""

KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Entry]]] = {
    "completions": (
        "vllm.entrypoints.openai.completion.protocol",
        "CompletionRequest",
        {"model": "m", "prompt": "p"},
        {**SAMPLING, **REQUEST, **COMPLETION},
    ),
    "chat completions": (
        "vllm.entrypoints.openai.chat_completion.protocol",
        "ChatCompletionRequest",
        {"model": "m", "messages": [{"role": "user", "content": "p"}]},
        {**SAMPLING, **REQUEST, **CHAT},
    ),
    "responses": (
        "vllm.entrypoints.openai.responses.protocol",
        "ResponsesRequest",
        {"model": "m", "input": "p"},
        RESPONSES,
    ),
}
