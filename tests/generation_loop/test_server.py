# SPDX-License-Identifier: Apache-2.0
"""What clients of the server are sent when a plug-in fails."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.server.conftest import client_of, serving
from tests.server.known_answers import SOLVED, complete

LOOP = "tests.generation_loop.loops.FragileLoop"


def test_errors_reach_the_client_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.diffusion import bundled_path

    full_moon = tmp_path / "full_moon"
    monkeypatch.setenv("FRAGILE_WHILE", str(full_moon))
    with serving(bundled_path(), tmp_path / "log", "--generation-loop", LOOP) as server:
        client = client_of(server)
        assert complete(client).choices[0].text == SOLVED
        full_moon.touch()
        for stream in (False, True):
            with pytest.raises(openai.APIError) as failed:
                list(complete(client, stream=stream))
            assert f"generation_loop='{LOOP}': forward() raised OSError: the moon is full" in str(
                failed.value
            )
            assert "(request " in str(failed.value)
            if isinstance(failed.value, openai.APIStatusError):
                assert failed.value.status_code == 500
        with pytest.raises(openai.BadRequestError) as refused:
            complete(client, vllm_xargs={"mood": 3})
        assert f"generation_loop='{LOOP}': validate_params() raised AttributeError" in str(refused.value)
        full_moon.unlink()
        assert complete(client).choices[0].text == SOLVED
        server.get("/health")
