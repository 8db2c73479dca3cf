"""Write down what vLLM 0.33 has of all that kvserve overrides and imports, from its wheel, which is not installed.

    pip download --no-deps --only-binary=:all: vllm==0.33.0
    python -m tests.kvserve.record_vllm_0_33 vllm-0.33.0-*.whl

The wheel is too large to be fetched for every run of the tests: they read what was written.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

from kvserve.startup.guard import signatures
from kvserve.startup.vllm_0_33 import MOVED
from tests.kvserve.source_of_vllm import SourceOfVLLM
from tests.kvserve.uses_of_vllm import uses

RECORD = Path(__file__).with_name("vllm_0_33.json")
AGAIN = "write the record anew, see tests/kvserve/record_vllm_0_33.py"


def record(source: SourceOfVLLM) -> dict[str, Any]:
    """Parameters by method, and the module that declares it by name; null for what is not there."""
    version = source.version()
    names = [*names_used(source), *(f"{modules[1]}.{name}" for name, modules in MOVED.items())]
    return {
        "version": version,
        "methods": {
            f"{owner}.{method}": source.parameters(owner, method)
            for owner, methods in signatures(version).items()
            for method in methods
        },
        "names": {name: found.module if (found := source.find(name)) else None for name in sorted(set(names))},
    }


def names_used(source: SourceOfVLLM) -> dict[str, str]:
    """Full names of vLLM in our sources, but those of what moved -> a file that names it."""
    return uses(lambda name: (found := source.find(name)) is not None and isinstance(found.node, ast.Module))


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(SourceOfVLLM(Path(sys.argv[1]))), indent=1) + "\n", encoding="utf-8")
