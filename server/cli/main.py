"""The command line: `kvserve COMMAND ...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import kvserve
from server.cli import check_policy

EXAMPLES = """examples:
  kvserve serve                                          a small real model on 127.0.0.1:8000, fetched if need be
  kvserve serve mini                                     the mini model, which comes with kvserve
  kvserve serve Qwen/Qwen3-8B --kv-policy snapkv:0.25    compress by default to a quarter
  kvserve serve --help=kvserve                           flags of kvserve; every `vllm serve` flag works too
  kvserve models                                         small real models that can be fetched
  kvserve policies snapkv                                its parameters, ranges and defaults
  kvserve check-policy my-policy                         does it keep to the contract
  kvserve calibrate Qwen/Qwen3-8B -o qwen3-8b.safetensors    statistics for triattention and prefixkv's offline profile
  kvserve train-summary ./my-qwen3 --text my-text.txt    teach a model summary tokens, for ksa; Ctrl-C saves
  kvserve convert-summary ./KSA-4B-base -o ./ksa-4b      a published KSA checkpoint, made servable
  kvserve eval --policies snapkv h2o                     their quality between full, random and an oracle
  kvserve doctor Qwen/Qwen3-8B                           can this machine serve it, and if not why
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="kvserve",
        description="vLLM with a KV-cache compression policy per request.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="start the server; takes every flag of `vllm serve`", add_help=False)
    commands.add_parser("eval", help="quality of policies over an OpenAI endpoint: tables and curves", add_help=False)
    commands.add_parser("train-summary", help="teach a Qwen3 model summary tokens, for the policy ksa", add_help=False)
    commands.add_parser("convert-summary", help="make a published KSA checkpoint servable", add_help=False)
    policies = commands.add_parser("policies", help="list the installed policies, or show one")
    policies.add_argument("name", nargs="?", metavar="NAME", help="show this policy's parameters")
    policies.add_argument("--json", action="store_true", help="print what GET /v1/kv/policies answers")
    models = commands.add_parser("models", help="list the small real models that can be fetched, or fetch one")
    models.add_argument("name", nargs="?", metavar="NAME", help="fetch this one, unless it is there")
    models.add_argument("--json", action="store_true", help="print it as JSON")
    _check_policy_arguments(commands)
    doctor = commands.add_parser("doctor", help="what this machine, this vLLM and a model can serve")
    doctor.add_argument("model", nargs="?", metavar="MODEL", help="folder or name (default: mini)")
    calibrate = commands.add_parser("calibrate", help="write the statistics that calibrated policies need")
    _calibrate_arguments(calibrate)
    return top


def _check_policy_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "check-policy",
        help="check that an installed policy keeps to the contract",
        description=check_policy.DESCRIPTION,
        epilog=check_policy.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="name, name:budget, or a JSON object with parameters")
    parser.add_argument("--no-engine", action="store_true", help="only the checks on tensors")
    parser.add_argument("--model", metavar="MODEL", help="folder or name, for the engine (default: mini)")


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or name (default: mini)")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="UTF-8 text (default: Python's own documentation)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--tokens", type=int, default=32_768, metavar="N", help="tokens to read (default: %(default)s)")
    parser.add_argument(
        "--window", type=int, default=2_048, metavar="N", help="tokens per prompt (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights, as for `vllm serve` (default: %(default)s)")
    parser.add_argument(
        "--tensor-parallel-size", type=int, default=1, metavar="N", help="workers (default: %(default)s)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="as for `vllm serve`")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 well, 1 cannot serve, 2 wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["serve"]:  # vLLM's parser reads the rest
        from server.cli.launch import serve

        return serve(argv[1:])
    if argv[:1] == ["eval"]:  # its libraries are not those of a server
        try:
            from evals.command import main as evaluate
        except ModuleNotFoundError as error:
            print(f"kvserve eval needs {error.name}: install kvserve[eval]", file=sys.stderr)
            return 1
        return evaluate(argv[1:])
    if argv[:1] in (["train-summary"], ["convert-summary"]):
        from models.summary import command as summary_command

        return {"train-summary": summary_command.train, "convert-summary": summary_command.convert}[argv[0]](argv[1:])
    args = parser().parse_args(argv)
    if args.command == "policies":
        return show_policies(args.name, args.json)
    if args.command == "models":
        from server.cli.model_list import show_models

        return show_models(args.name, args.json)
    if args.command == "check-policy":
        return check_policy.check(args.name, args.model, not args.no_engine)
    if args.command == "calibrate":
        from server.cli.calibrate import calibrate

        return calibrate(args)
    from server.cli.doctor import examine

    return examine(args.model)


def show_policies(name: str | None, as_json: bool) -> int:
    """Print all policies, or one; 2 if it is not installed."""
    from kvserve.policy.errors import PolicyError
    from server.catalog import card, cards
    from server.cli.table import details, overview

    try:
        found = cards() if name is None else card(name)
    except PolicyError as error:
        print(f"kvserve policies: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        print(overview(found) if name is None else details(found))  # type: ignore[arg-type]
    return 0


def _version() -> str:
    from kvserve.startup.version import vllm_version

    return f"kvserve {kvserve.__version__} (vLLM {vllm_version() or 'not installed'})"


if __name__ == "__main__":
    sys.exit(main())
