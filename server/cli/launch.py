"""`kvserve serve`: vLLM's own serve command, with the options set that switch kvserve on."""

import os
import sys
from argparse import Namespace
from collections.abc import MutableMapping
from typing import Any

from kvserve.startup.refusals import asked, refusal
from kvserve.startup.vllm_0_33 import moved
from models.wheels import FetchError
from server.cli import embedded, memory, plugins
from server.cli.architecture import configuration
from server.cli.chosen_model import choose
from server.cli.flags import UsageError, add_flags, check_early, options_of

SCHEDULER = "kvserve.engine.scheduler.KVScheduler"
WORKER = "kvserve.engine.worker.KVWorker"
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"

USAGE = "kvserve serve [MODEL] [any vllm serve flag] [--kv-policy NAME[:BUDGET]]"
DESCRIPTION = """Serve MODEL on an OpenAI-compatible API at 127.0.0.1:8000: a folder, a Hugging Face name, one of
`kvserve models`, or `mini`, which comes with kvserve. Without MODEL a small real one, fetched at the first start; where
that cannot be had, `mini`. Every flag of `vllm serve` works; flags of kvserve are in the group "kvserve".

Search by using: `--help=kvserve`, `--help=<ConfigGroup>` or `--help=<flag>`; `--help=all` shows everything.
`kvserve policies` lists the policies, `kvserve doctor` says what this machine can serve.
"""


# -- vLLM's flags -------------------------------------------------------------------------------------


def switch_on(args: Namespace) -> None:
    """Change parsed `vllm serve` arguments so that they start kvserve. Raises UsageError."""
    options = options_of(args)
    for flag, value, unset in (("scheduler_cls", SCHEDULER, None), ("worker_cls", WORKER, "auto")):
        if getattr(args, flag) not in (unset, value):
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: kvserve needs {value}")
        setattr(args, flag, value)
    if getattr(args, "grpc", False) or os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise UsageError("kvserve needs vLLM's Python HTTP server; leave out --grpc and VLLM_USE_RUST_FRONTEND")
    if options.canary and (servers := _api_servers(args)) > 1:
        raise UsageError(
            f"--kv-canary {options.canary:g} needs one API process, as none sees the requests of the others, and this "
            f"server would have {servers}; add --api-server-count 1"
        )
    args.additional_config = {
        **(args.additional_config or {}),
        "kvserve": options.model_dump(exclude_defaults=True),
    }


def _api_servers(args: Namespace) -> int:
    """API processes that vLLM will start: one for each engine, unless told otherwise."""
    return int(getattr(args, "api_server_count", None) or getattr(args, "data_parallel_size", None) or 1)


def choose_model(args: Namespace) -> bool:
    """Fill in the model and its name; returns whether it is the mini model. Raises UsageError and FetchError."""
    chosen = choose(args.model_tag or args.model)
    args.model, args.model_tag = chosen.model, None  # vLLM would put the tag over the model again
    if chosen.served_as is not None:
        args.served_model_name = args.served_model_name or [chosen.served_as]
    return chosen.is_mini


def known_configuration(args: Namespace) -> dict[str, Any] | None:
    """The model's configuration file; None if it cannot be read, which vLLM will say in its own words."""
    try:
        return configuration(args.model)
    except Exception:  # network, permissions, malformed files, code of the model's own
        return None


def refuse(args: Namespace, config: dict[str, Any]) -> None:
    """Raise UsageError for what the engine would refuse half a minute later."""
    if (why := refusal(asked(args, config))) is not None:
        raise UsageError(why)


def prepare_cpu(
    args: Namespace, is_mini: bool, environ: MutableMapping[str, str], config: dict[str, Any] | None = None
) -> str | None:
    """Choose a small cache, unless the user chose a size in one of vLLM's ways. Returns the line to print about it.

    Raises UsageError if not one request of full length would fit.
    """
    chosen = args.kv_cache_memory_bytes is not None or args.gpu_memory_utilization is not None
    if chosen or environ.get(CPU_CACHE, "0") not in ("", "0"):
        return None
    if is_mini:
        environ[CPU_CACHE] = str(embedded.CACHE_GIB)
        return f"KV cache: {embedded.CACHE_GIB} GiB; {memory.FLAGS} changes that"
    if config is None:
        return None
    available = memory.free()
    args.kv_cache_memory_bytes = size = _cache_size(args, config, available)
    return f"KV cache: {memory.shown(size)} of {memory.shown(available)} free; {memory.FLAGS} changes that"


def _cache_size(args: Namespace, config: dict[str, Any], available: int) -> int:
    """Bytes for each worker, on a machine with `available` bytes free."""
    workers = int(getattr(args, "tensor_parallel_size", None) or 1)
    workers *= int(getattr(args, "pipeline_parallel_size", None) or 1)
    engines = workers * int(getattr(args, "data_parallel_size", None) or 1)
    length = args.kv_resident_tokens if getattr(args, "kv_resident_tokens", None) else args.max_model_len
    length = length if isinstance(length, int) and length > 0 else None
    found = memory.need(args.model, config, length, str(args.dtype), str(args.kv_cache_dtype))
    found = found._replace(request=found.request // workers)
    if found.request > (most := memory.most(found, available, engines)):
        raise UsageError(
            f"one request of full length needs {memory.shown(found.request)} of KV cache, and {memory.SHARE:.0%} of "
            f"the memory that is free beside the weights is {memory.shown(max(most, 0))}; lower --max-model-len, start "
            f"with --kv-resident-tokens N for requests that compress, or set {memory.FLAGS} yourself"
        )
    return memory.default(found, available, engines)


# -- the command --------------------------------------------------------------------------------------


def vllm_parser() -> Any:
    """vLLM's parser of `serve` with our group and our defaults."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    bare = FlexibleArgumentParser(prog="kvserve serve", usage=USAGE, description=DESCRIPTION)
    parser = moved("make_arg_parser")(bare)
    add_flags(parser.add_argument_group("kvserve", "Compression of the KV cache."))
    parser.set_defaults(
        model=None,  # so that a named model can be told from vLLM's default
        gpu_memory_utilization=None,
        host="127.0.0.1",
        enable_request_id_headers=True,
        enable_prompt_tokens_details=True,
    )
    return parser


def parsed(argv: list[str]) -> Namespace:
    """vLLM's arguments, ready to run; sets environment variables that vLLM reads. Raises UsageError and FetchError."""
    from vllm.platforms import current_platform

    args: Namespace = vllm_parser().parse_args(argv)
    switch_on(args)
    is_mini = choose_model(args)
    if (config := known_configuration(args)) is not None:
        refuse(args, config)
    if current_platform.is_cpu() and (told := prepare_cpu(args, is_mini, os.environ, config)) is not None:
        print(f"kvserve serve: {told}", file=sys.stderr)
    if args.gpu_memory_utilization is None:
        from vllm.config import CacheConfig

        args.gpu_memory_utilization = CacheConfig.gpu_memory_utilization
    args.subparser = "serve"
    return args


def serve(argv: list[str]) -> int:
    """Run vLLM's serve command in this process; returns when it ends."""
    try:
        check_early(argv)
        plugins.allow(os.environ)
        moved("cli_env_setup")()
        args = parsed(argv)
    except UsageError as error:
        print(f"kvserve serve: {error}", file=sys.stderr)
        return 2
    except FetchError as error:
        print(f"kvserve serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while a model is fetched
        return 130
    _run(args)
    return 0


def _run(args: Namespace) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args

    command = ServeSubcommand()
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)
