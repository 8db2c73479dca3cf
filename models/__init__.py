"""The embedded models: small Qwen3s that look things up, and the recipe that made them."""

from pathlib import Path

MINI = Path(__file__).parent / "mini"
"""Where the embedded model lies; the others of the family lie beside it."""
