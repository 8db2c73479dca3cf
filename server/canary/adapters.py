"""Which LoRA adapters the server still has. If a worker is asked for one whose files are gone, the engine ends."""

from pathlib import Path
from typing import Any


class Adapters:
    """Reads vLLM's list of models, which is in the app's `state` after vLLM has put it there."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def hold(self, adapter: Any) -> bool:
        """Whether a request with this adapter (vLLM's LoRARequest, or None) would still get the same weights."""
        if adapter is None:
            return True
        models = getattr(self._state, "openai_serving_models", None)
        loaded: Any = getattr(models, "lora_requests", {}).get(adapter.lora_name)
        # The same object, not an equal one: an adapter loaded in its place has the same name and number.
        return loaded is adapter and Path(str(adapter.lora_path)).exists()
