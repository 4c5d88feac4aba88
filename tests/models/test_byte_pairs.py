"""The byte-pair tokenizer: what it learns, and that the published format says the same."""

import json

import pytest
from tinydlm.bpe import BytePairs
from tinydlm.vocab import EOS, MASK
from tokenizers import Tokenizer

TEXTS = [
    "Ann has 12 apples. Ann buys 3 boxes.",
    '{"name": "Ann", "count": 12}\n',
    "def run(a):\n    return a * 3\n",
]
STRANGE = [
    "",
    " ",
    "  two  spaces ",
    "naïve “quoted”",
    "tab\tand\r\nline\n\n    x",
    "a_b1c 2 34 five+6",
    "日本 0",
]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairs:
    return BytePairs.learn(TEXTS * 3, 300)


def test_any_text_survives(tokenizer: BytePairs) -> None:
    for text in TEXTS + STRANGE:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_library_gives_the_same_ids(tokenizer: BytePairs) -> None:
    content = json.dumps(tokenizer.tokenizer_json())
    library = Tokenizer.from_str(content)
    for text in TEXTS + STRANGE:
        assert library.encode(text).ids == tokenizer.encode(text), text
        assert library.decode(tokenizer.encode(text)) == text
    assert library.token_to_id("<|MASK|>") == MASK
    again = BytePairs.of(json.loads(content))
    assert again.tokens == tokenizer.tokens and len(again) == 300


def test_digits_are_never_merged_and_frequent_words_are(tokenizer: BytePairs) -> None:
    assert len(tokenizer.encode("4821")) == 4
    assert len(tokenizer.encode("Ann")) == 1
    assert not any(sum(char.isdigit() for char in token) > 1 for token in tokenizer.tokens)


def test_text_ends_at_the_end_token(tokenizer: BytePairs) -> None:
    ids = tokenizer.encode("Ann")
    assert tokenizer.decode([*ids, EOS, *ids]) == "Ann"
    assert tokenizer.decode([*ids, MASK]) == "Ann\ufffd"


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 5000"):
        BytePairs.learn(["ab"], 5000)
