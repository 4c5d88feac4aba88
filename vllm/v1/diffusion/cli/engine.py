# SPDX-License-Identifier: Apache-2.0
"""The engine of ``vllm diffuse``: started, fed, shut down."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.v1.diffusion.bundled import bundled_path
from vllm.v1.diffusion.cli.options import diffusion_params
from vllm.v1.diffusion.families import check_model_path
from vllm.v1.diffusion.message.pieces import Piece, pieces
from vllm.v1.diffusion.request.resolve import resolve_decoding

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

SHUTDOWN_SECONDS = 20.0
_MAX_TOKENS, _MAX_TOKENS_BUNDLED = 256, 32


class UsageError(ValueError):
    """The arguments, the model or a prompt cannot be used; the message says why."""


class Engine:
    """An engine that is fed from this process.

    One rank runs in this process too: another one would import all of vLLM again, half of a start's
    processor time. ``VLLM_ENABLE_V1_MULTIPROCESSING=1`` gives it a process of its own, which several
    ranks have in any case.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Checks the arguments, then starts the engine.

        Raises:
            ValueError: The arguments or the model cannot be used.
            OSError: The model's files cannot be read.
            RuntimeError: The engine does not start.
        """
        model = model_path(args)
        if not args.verbose:
            os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
            logging.getLogger("vllm").setLevel(logging.ERROR)
        if args.tensor_parallel_size == 1:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        config = EngineArgs(
            model=model,
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            tensor_parallel_size=args.tensor_parallel_size,
            enforce_eager=not args.compile,
            disable_log_stats=True,
        ).create_engine_config()
        # The start collects garbage many times: what was imported is none, and need not be read each time.
        gc.freeze()
        self.params = _sampling_params(config, args)
        self.description = _description(model, config, self.params)
        self._engine: LLMEngine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        self._tokenizer = self._engine.get_tokenizer()

    def shutdown(self) -> None:
        """Ends the engine's processes and waits for them."""
        self._engine.engine_core.shutdown(timeout=SHUTDOWN_SECONDS)

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]:
        """The texts of an answer's tokens."""
        return pieces(self._tokenizer, token_ids)

    def stream(self, prompts: Sequence[str]) -> Iterator[list[tuple[int, RequestOutput]]]:
        """Runs prompts in one batch.

        Yields:
            What an engine step gave: for every request of which a block finished its
            index in ``prompts``, and its output so far.

        Raises:
            ValueError: A prompt cannot be used; none is run then.
        """
        from vllm.exceptions import VLLMClientError

        engine = self._engine
        indices: dict[str, int] = {}
        try:
            for index, prompt in enumerate(prompts):
                request_id = f"diffuse-{time.monotonic_ns()}-{index}"
                engine.add_request(request_id, {"prompt": prompt}, self.params.clone())
                indices[request_id] = index
        except (ValueError, VLLMClientError) as error:
            engine.abort_request(list(indices))
            reason = str(error).split(" (parameter=")[0]
            raise UsageError(f"prompt {prompt[:40]!r}: {reason}") from error
        while engine.has_unfinished_requests():
            outputs = [
                (indices[output.request_id], output)
                for output in engine.step()
                if output.request_id in indices
            ]
            if outputs:
                yield outputs  # type: ignore[misc]


def model_path(args: argparse.Namespace) -> str:
    """The checkpoint that ``--model`` or ``--bundled`` names.

    Raises:
        ValueError: There is none, or both are given.
    """
    if args.model and args.bundled:
        raise UsageError("--model and --bundled exclude each other.")
    if not args.model:
        return bundled_path(args.bundled or "sdar")
    model = str(args.model)
    check_model_path(model)
    folder = Path(model).expanduser()
    is_path = model[0] in "./~" or model.count("/") > 1
    if is_path and not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise UsageError(f"--model {model} {what}.")
    return str(folder) if is_path else model


def _description(model: str, config: VllmConfig, params: SamplingParams) -> str:
    """A line on the model and what the requests ask for."""
    from vllm.v1.diffusion.config import resolve_diffusion_config

    decoding = resolve_decoding(params, resolve_diffusion_config(config))
    asked = {
        "algorithm": decoding.algorithm,
        "block_length": decoding.block_length,
        **{key.removeprefix("diffusion_"): value for key, value in (params.extra_args or {}).items()},
        "temperature": params.temperature,
    }
    for name in ("trace", "seed_canvas", "pinned"):
        asked.pop(name, None)
    return " · ".join([Path(model).name, *(f"{name} {value}" for name, value in asked.items())])


def _sampling_params(config: VllmConfig, args: argparse.Namespace) -> SamplingParams:
    """The checkpoint's own parameters, and over them those of the command line."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.generation_loop import get_generation_loop

    model_config = config.model_config
    if not isinstance(config.diffusion_config, MaskedDiffusionConfig):
        raise UsageError(
            f"{model_config.model} is no masked-diffusion model ({', '.join(model_config.architectures)})."
        )
    values = dict(model_config.get_diff_sampling_param())
    values["max_tokens"] = _MAX_TOKENS if args.model else _MAX_TOKENS_BUNDLED
    for name in ("max_tokens", "temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    params = SamplingParams(**values, extra_args=diffusion_params(args).to_extra_args())
    get_generation_loop(config).validate_params(params, config)
    return params
