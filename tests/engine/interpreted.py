"""vLLM's V2 model runner on this machine: its Triton kernels run in Triton's interpreter."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
BACKEND = ROOT / "tests/interpreter"  # found by its entry point: see triton_interpreter there
V2 = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(BACKEND), os.environ.get("PYTHONPATH")])),
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
}
"""Environment of a process that runs it."""
