"""Which LoRA adapters the server still has: a worker asked for one that is gone from the disk ends the engine."""

from pathlib import Path
from typing import Any


class Adapters:
    """Those of vLLM's list of models, which lives in the app's `state` once vLLM has put it there."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def hold(self, adapter: Any) -> bool:
        """Whether a request with this adapter (vLLM's LoRARequest, or None) would still get what it got."""
        if adapter is None:
            return True
        models = getattr(self._state, "openai_serving_models", None)
        loaded: Any = getattr(models, "lora_requests", {}).get(adapter.lora_name)
        # Not merely equal: one that was loaded in its place has its name and number.
        return loaded is adapter and Path(str(adapter.lora_path)).exists()
