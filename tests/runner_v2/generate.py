# SPDX-License-Identifier: Apache-2.0
"""Runs one engine over a fixed set of requests: `python generate.py FOLDER OUT.json OPTIONS.json`.

A process of its own, because an engine binds threads and replaces parts of torch. FOLDER holds what
make_checkpoint made.
"""

import json
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 128


def make_checkpoint(folder: Path) -> None:
    """A Qwen3 with random weights and a tokenizer of single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    ids = {token: i for i, token in enumerate(special + [chr(c) for c in range(32, 127)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.2,  # far from uniform, so that ids are not a matter of rounding
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)  # type: ignore[no-untyped-call]


def requests() -> Any:
    """Name -> (prompts, parameters). Names that begin with "random" draw; the others do not."""
    import numpy as np

    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    def params(count: Any = 16, **more: Any) -> Any:
        return SamplingParams(**{"temperature": 0.0, "max_tokens": count, "ignore_eos": True} | more)

    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 99, n).tolist() for n in (1, 33, 130)]
    prompts.append([*prompts[2][:64], 9, 9, 9])  # a prefix in common
    regex = StructuredOutputsParams(regex="[0-9]{3}-[a-f]{2,5}")
    sets = {
        "greedy": params(40),
        "eos": params(40, ignore_eos=False),
        "logprobs": params(logprobs=3),
        "prompt logprobs": params(4, prompt_logprobs=2),
        "logprobs of ids": params(4, logprob_token_ids=[4, 5, 50]),
        "penalties": params(24, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
        "logit bias": params(logit_bias={7: 4.0, 50: -3.0}),
        "allowed ids": params(allowed_token_ids=[5, 6, 7, 8, 9, 44]),
        "bad words": params(24, bad_words=["a", "bc", "Z", "!", "XYZ"]),
        "min tokens": params(24, min_tokens=10, stop_token_ids=list(range(20, 99, 3))),
        "stop strings": params(40, stop=["a", "b", "c1"], include_stop_str_in_output=True),
        "structured": params(20, structured_outputs=regex, ignore_eos=False),
        "top-k of 1": params(temperature=1.0, top_k=1),
        "min-p of 1": params(temperature=0.7, min_p=1.0),
        "top-p near 0": params(temperature=1.5, top_p=1e-6),
        "random": params(24, temperature=0.8, seed=11),
        "random, cut": params(24, temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, seed=12),
        "random, structured": params(20, temperature=1.0, seed=1, structured_outputs=regex, ignore_eos=False),
    }
    return [(name, prompt, p) for name, p in sets.items() for prompt in prompts]


def tell(output: Any) -> Any:
    """What a request returned, as JSON can hold it."""

    def scores(steps: Any) -> Any:
        return steps and [step and sorted((i, s.logprob, s.rank) for i, s in step.items()) for step in steps]

    answer = output.outputs[0]
    return {
        "ids": list(answer.token_ids),
        "text": answer.text,
        "reason": answer.finish_reason,
        "logprobs": scores(answer.logprobs),
        "prompt_logprobs": scores(output.prompt_logprobs),
    }


def main(folder: Path, out: Path, options: dict[str, Any]) -> None:
    from vllm import LLM

    llm = LLM(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        disable_log_stats=False,
        **options,
    )
    names, inputs, params = zip(*requests(), strict=True)
    prompts: Any = [{"prompt_token_ids": ids} for ids in inputs]
    reported: dict[str, Any] = {}
    for name, output in zip(names, llm.generate(prompts, list(params), use_tqdm=False), strict=True):
        reported.setdefault(name, []).append(tell(output))
    last = len(names) - 1 - names[::-1].index("random")
    reported["random, alone"] = [tell(llm.generate(prompts[last], params[last], use_tqdm=False)[0])]
    metrics: list[Any] = llm.get_metrics()
    reported["preemptions"] = sum(m.value for m in metrics if m.name == "vllm:num_preemptions")
    out.write_text(json.dumps(reported))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
