"""The mini model, which comes with kvserve."""

from importlib.util import find_spec
from pathlib import Path

NAME = "mini"
"""What it is called on the command line."""
SERVED_NAME = "kvserve-mini"
CACHE_GIB = 2
"""KV cache on CPU unless the user says otherwise; vLLM would take a large share of the machine."""


def folder() -> Path | None:
    """Where it is installed; None if this installation has none."""
    spec = find_spec("models")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [Path(place) / "mini" for place in places]
    return next((path for path in found if (path / "config.json").is_file()), None)
