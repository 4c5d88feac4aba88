# SPDX-License-Identifier: Apache-2.0
"""What several tests of grammars use."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.vocabularies import write_tokenizer
from tests.policies.grammars import BACKENDS, END, MASK, VOCABULARY


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, "PreTrainedTokenizerFast", VOCABULARY, eos=END, mask=MASK)
    (folder / "tokenization_own.py").unlink()
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def backend_of(tokenizer: Any) -> Any:
    @cache
    def make(name: str) -> Any:
        from vllm.v1.structured_output.backend_guidance import GuidanceBackend
        from vllm.v1.structured_output.backend_outlines import OutlinesBackend
        from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

        classes: tuple[Any, ...] = (XgrammarBackend, GuidanceBackend, OutlinesBackend)
        config = SimpleNamespace(
            structured_outputs_config=SimpleNamespace(
                disable_any_whitespace=True, disable_additional_properties=False
            ),
            model_config=None,
            speculative_config=None,
        )
        return dict(zip(BACKENDS, classes, strict=True))[name](config, tokenizer, VOCABULARY)

    return make
