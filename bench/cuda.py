"""`python -m bench.cuda`: vLLM with policies on one GPU, with whole CUDA graphs, on the embedded model.

It prints (a) what every policy does with decoding replayed as CUDA graphs, against the same engine run eagerly, and
requests without a policy against stock vLLM, and (b) the time of decode steps of many requests, and writes JSON.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import __main__ as bench
from bench import cuda_checks, cuda_times
from measuring import results
from measuring.command import defaults
from measuring.machine import about
from measuring.report import rows

ENVIRONMENT = {**bench.ENVIRONMENT, "VLLM_USE_V2_MODEL_RUNNER": "1"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m bench.cuda", description=__doc__)
    made.add_argument("--backend", default="TRITON_ATTN", help="attention backend (default: %(default)s)")
    made.add_argument("--dtype", default="float32", help="of (a); FLASH_ATTN needs bfloat16 (default: %(default)s)")
    made.add_argument("--parts", default="ab", help="which of a and b (default: %(default)s)")
    made.add_argument("--shape", choices=tuple(cuda_times.SHAPES), default="0.5B", help="of (b) (default: %(default)s)")
    made.add_argument("--requests", type=int, default=256, help="of (b), at once (default: %(default)s)")
    made.add_argument("--prompt", type=int, default=2048, help="tokens, of (b) (default: %(default)s)")
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="in (b), with torch.compile"
    )
    made.add_argument("--out", type=Path, default=Path("results/cuda.json"), help="JSON; the tables beside it as .md")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(argv)
    defaults(ENVIRONMENT)
    record: dict[str, Any] = {**about(), **card(), "backend": chosen.backend, "dtype": chosen.dtype, "tables": {}}
    if "a" in chosen.parts:
        record |= checked(chosen)
        results.write(chosen.out, record, text(record))
    if "b" in chosen.parts:
        record["tables"][cuda_times.heading(chosen)] = cuda_times.measure(chosen)
    results.write(chosen.out, record, text(record))
    print(text(record))
    return 1 if record.get("failures") else 0


def checked(chosen: argparse.Namespace) -> dict[str, Any]:
    """Three engines answer the same requests, each in a process of its own."""
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        asked = {
            case: pool.submit(cuda_checks.answered, case, chosen.backend, chosen.dtype) for case in cuda_checks.CASES
        }
        found = {case: each.result() for case, each in asked.items()}
    table, failures = cuda_checks.compared(found)
    return {"tables": {cuda_checks.HEADING: table}, "failures": failures, "refused": found[cuda_checks.EAGER].refused}


def card() -> dict[str, str]:
    import torch
    import triton

    return {"card": torch.cuda.get_device_name(), "triton": triton.__version__}


def text(record: dict[str, Any]) -> str:
    """The tables, and what stands above them."""
    versions = record["versions"]
    said = [f"{record['card']}; vLLM {versions.get('vllm')}, torch {versions.get('torch')}, Triton {record['triton']}; "
            f"{record['backend']}; {record['date']}; commit {record['commit']}."]  # fmt: skip
    for heading, table in record["tables"].items():
        names = list(dict.fromkeys(name for row in table for name in row))
        cells = [[shown(row.get(name)) for name in names] for row in table]
        said += [heading, rows([names, ["---", *("---:" for _ in names[1:])], *cells])]
    said += [f"- failed: {why}" for why in record.get("failures", ())]
    said += [f"- {name} was not asked: {why}" for name, why in record.get("refused", {}).items()]
    return "\n\n".join(said) + "\n"


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
