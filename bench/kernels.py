"""`python -m bench.kernels`: speed of the Triton kernels on one GPU; needs torch and Triton, no vLLM.

First every kernel is checked against torch on the same GPU. Then it prints (a) the mover of slots against a plain
copy, (b) attention mass against flash attention, (c) the compaction of many requests, and writes JSON.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import results
from measuring.machine import commit
from measuring.report import rows

DIGITS = 4
"""Significant digits of a number."""
INTERPRETED = "Triton's interpreter on a CPU: no speed, the times are left out."


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m bench.kernels", description=__doc__)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, interpreted")
    made.add_argument(
        "--out", type=Path, default=Path("results/kernels.json"), help="JSON; the tables beside it as .md"
    )
    made.add_argument("--parts", default="abc", help="which of a, b and c are timed (default: %(default)s)")
    made.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="compare with torch's results first"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(argv)
    if chosen.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # chosen when triton is imported
    from bench.kernel_checks import Wrong, check

    started, device = time.monotonic(), about(chosen.device)
    say(started, ", ".join(f"{name} {value}" for name, value in device.items()))
    try:
        passed = 0
        for line in check(chosen.device) if chosen.check else ():
            say(started, line)
            passed += 1
    except Wrong as error:
        print(f"bench.kernels: {error}", file=sys.stderr)
        return 1
    record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), **device}
    record |= {"checks_passed": passed, "interpreted": chosen.device == "cpu", "failed": {}, "parts": {}}
    for part in chosen.parts:
        measure(part, chosen.device, record, started)
        results.write(chosen.out, results.rounded(record, DIGITS), text(record))
    print(text(record))
    return 1 if record["failed"] else 0


def measure(part: str, device: str, record: dict[str, Any], started: float) -> None:
    """One part; an error is said, and the other parts go on."""
    from bench.kernel_cases import TINY, Sizes
    from bench.kernel_times import PARTS

    record["parts"][part] = table = []
    try:
        for row in PARTS[part](TINY if device == "cpu" else Sizes(), device):
            if device == "cpu":
                row = {name: None if isinstance(value, float) else value for name, value in row.items()}
            table.append(row)
            say(started, f"({part}) " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()))
    except Exception as error:
        record["failed"][part] = f"{type(error).__name__}: {error}"
        say(started, f"({part}) failed: {record['failed'][part]}")


def about(device: str) -> dict[str, str]:
    import torch
    import triton

    card = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    return {"card": card, "torch": torch.__version__, "triton": triton.__version__}


def text(record: dict[str, Any]) -> str:
    """The tables, and what stands above them."""
    from bench.kernel_times import HEADINGS

    said = [f"{record['card']}; torch {record['torch']}, Triton {record['triton']}; {record['date']}; commit "
            f"{record['commit']}. {record['checks_passed']} checks against torch passed. Medians."]  # fmt: skip
    said += [INTERPRETED] if record["interpreted"] else []
    for part, table in record["parts"].items():
        said.append(f"({part}) {HEADINGS[part]}")
        if table:
            names = list(dict.fromkeys(name for row in table for name in row))
            cells = [[shown(row.get(name)) for name in names] for row in table]
            said.append(rows([names, ["---", *("---:" for _ in names[1:])], *cells]))
    said += [f"({part}) failed: {why}" for part, why in record["failed"].items()]
    return "\n\n".join(said) + "\n"


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def say(started: float, line: str) -> None:
    print(f"[{time.monotonic() - started:5.1f} s] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
