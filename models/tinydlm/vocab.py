"""The character vocabulary shared by every bundled model.

A printable ASCII character's token id is its character code, so ids can be read with ``chr``. The
low ids are special tokens; codes that are neither are filled with reserved tokens, so that every id
below ``VOCAB_SIZE`` decodes to something.
"""

from collections.abc import Sequence

UNK = 0
EOS = 1
MASK = 2
TURN_START = 3
TURN_END = 4
VOCAB_SIZE = 128

CHARACTERS = ["\t", "\n", *(chr(code) for code in range(0x20, 0x7F))]

SPECIAL_NAMES = {
    "sdar": {
        UNK: "<|unk|>",
        EOS: "<|endoftext|>",
        MASK: "<|MASK|>",
        TURN_START: "<|im_start|>",
        TURN_END: "<|im_end|>",
    },
    "llada": {
        UNK: "<|unk|>",
        EOS: "<|endoftext|>",
        MASK: "<|mdm_mask|>",
        TURN_START: "<|startoftext|>",
        TURN_END: "<|eot_id|>",
    },
}
"""Special tokens of each family, named as the family's published tokenizer names them."""


def encode(text: str) -> list[int]:
    """Turns text into token ids; a character outside the vocabulary becomes ``UNK``."""
    return [ord(char) if char in CHARACTERS else UNK for char in text]


def decode(ids: Sequence[int]) -> str:
    """Turns ids into text up to the first ``EOS``; other special ids become U+FFFD."""
    text = []
    for token in ids:
        if token == EOS:
            break
        text.append(chr(token) if chr(token) in CHARACTERS else "\ufffd")
    return "".join(text)
