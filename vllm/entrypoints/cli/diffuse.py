# SPDX-License-Identifier: Apache-2.0
"""The subcommand ``vllm diffuse``: generate with a diffusion model, at once."""

from __future__ import annotations

import argparse
import sys
import typing

from vllm.entrypoints.cli.types import CLISubcommand

if typing.TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


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
        """Declares the options."""
        parser = subparsers.add_parser(
            self.name,
            help="Generate with a diffusion language model and watch it denoise.",
            description="Generate with a diffusion language model and watch it "
            "denoise. Without a prompt, the bundled model solves a few puzzles.",
            usage="vllm diffuse [--model PATH] [--prompt TEXT ...] [options]",
        )
        source = parser.add_argument_group("model")
        source.add_argument("--model", help="Checkpoint's folder or name.")
        source.add_argument(
            "--bundled",
            metavar="FAMILY",
            help="Use the bundled checkpoint of this family (default: sdar).",
        )
        source.add_argument("--dtype", default="auto", help="As in vllm serve.")
        source.add_argument("--max-model-len", type=int, help="As in vllm serve.")
        source.add_argument(
            "--tensor-parallel-size", type=int, default=1, help="As in vllm serve."
        )
        source.add_argument(
            "--compile",
            action="store_true",
            help="Compile the model and use CUDA graphs: a longer start, faster steps.",
        )
        what = parser.add_argument_group("what to do")
        what.add_argument(
            "--prompt",
            action="append",
            metavar="TEXT",
            help="Text to continue; may be given several times.",
        )
        what.add_argument(
            "--interactive", action="store_true", help="Read prompts line by line."
        )
        what.add_argument(
            "--demo",
            type=int,
            metavar="N",
            nargs="?",
            const=8,
            help="Solve N puzzles and check the answers (default: 8).",
        )
        what.add_argument("--json", action="store_true", help="Print JSON lines.")
        what.add_argument(
            "--verbose", action="store_true", help="Show the engine's log."
        )
        how = parser.add_argument_group("decoding")
        how.add_argument(
            "--max-tokens",
            type=int,
            help="Tokens to generate at most (default: 256; 32 with a bundled model).",
        )
        how.add_argument("--temperature", type=float)
        how.add_argument("--top-k", type=int)
        how.add_argument("--top-p", type=float)
        how.add_argument(
            "--seed", type=int, help="Of the sampling and of the demo's puzzles."
        )
        how.add_argument("--algorithm", help="Unmasking policy.")
        how.add_argument("--steps", type=int, help="Denoising steps a block.")
        how.add_argument("--block-length", type=int, help="Tokens a block.")
        how.add_argument("--threshold", type=float, help="Confidence threshold.")
        how.add_argument(
            "--entropy-bound", type=float, help="Entropy settled a step, in nats."
        )
        return parser


def cmd_init() -> list[CLISubcommand]:
    """The subcommands of this module."""
    return [DiffuseSubcommand()]
