# SPDX-License-Identifier: Apache-2.0
"""The subcommand ``vllm diffuse``: generate with a diffusion model, at once."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import typing
from contextlib import ExitStack

from vllm.entrypoints.cli.types import CLISubcommand
from vllm.v1.diffusion.cli.progress import progress

if typing.TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

_importing = ExitStack()
if sys.argv[1:2] == ["diffuse"] and not {"-h", "--help"}.intersection(sys.argv):
    # The other subcommands' modules are imported after this one, which takes
    # seconds and warns of what does not concern this one.
    _importing.enter_context(progress("importing", sys.stderr))
    _importing.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if "--verbose" not in sys.argv:
        for _name in ("vllm", "torch._library.triton"):
            logging.getLogger(_name).setLevel(logging.ERROR)


class DiffuseSubcommand(CLISubcommand):
    """``vllm diffuse``."""

    name = "diffuse"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        """Runs the subcommand and exits with its status."""
        from vllm.v1.diffusion.cli.main import run

        sys.exit(run(args))

    def subparser_init(
        self, subparsers: argparse._SubParsersAction[FlexibleArgumentParser]
    ) -> FlexibleArgumentParser:
        """Declares the options; everything is imported by now."""
        from vllm.v1.diffusion.cli.options import add_decoding_options

        _importing.close()
        parser = subparsers.add_parser(
            self.name,
            help="Generate with a diffusion language model and watch it denoise.",
            description="Generate with a diffusion language model and watch it "
            "denoise. Without a prompt, the bundled model solves a few puzzles.",
            usage="vllm diffuse [--model PATH] [--prompt TEXT [TEXT ...]] [options]",
        )
        # Upstream's parser overrides methods without types.
        groups = typing.cast(argparse.ArgumentParser, parser)
        source = groups.add_argument_group("model")
        source.add_argument("--model", help="Checkpoint's folder or name.")
        source.add_argument(
            "--bundled",
            metavar="FAMILY",
            help="Use the bundled checkpoint of this family (default: sdar).",
        )
        source.add_argument("--dtype", default="auto", help="As in vllm serve.")
        source.add_argument("--max-model-len", type=int, help="As in vllm serve.")
        source.add_argument("--tensor-parallel-size", type=int, default=1, help="As in vllm serve.")
        source.add_argument(
            "--compile",
            action="store_true",
            help="Compile the model and use CUDA graphs: a longer start, faster steps.",
        )
        what = groups.add_argument_group("what to do")
        what.add_argument(
            "--prompt",
            action="extend",
            nargs="+",
            metavar="TEXT",
            help="Texts to continue, in one batch.",
        )
        what.add_argument("--interactive", action="store_true", help="Read prompts line by line.")
        what.add_argument(
            "--demo",
            type=int,
            metavar="N",
            nargs="?",
            const=8,
            help="Solve N puzzles and check the answers (default: 8).",
        )
        what.add_argument(
            "--describe",
            metavar="MODEL",
            nargs="?",
            const="",
            help="Print what would be resolved for a model, and from where; start nothing.",
        )
        what.add_argument("--json", action="store_true", help="Print JSON lines.")
        what.add_argument(
            "--trace",
            metavar="FILE.html",
            help="Write a page that replays the denoising, for any browser.",
        )
        what.add_argument("--verbose", action="store_true", help="Show the engine's log.")
        how = groups.add_argument_group("decoding")
        how.add_argument(
            "--max-tokens",
            type=int,
            help="Tokens to generate at most (default: 256; 32 with a bundled model).",
        )
        how.add_argument("--temperature", type=float)
        how.add_argument("--top-k", type=int)
        how.add_argument("--top-p", type=float)
        how.add_argument("--seed", type=int, help="Of the sampling and of the demo's puzzles.")
        add_decoding_options(how)
        return parser


def cmd_init() -> list[CLISubcommand]:
    """The subcommands of this module."""
    return [DiffuseSubcommand()]
