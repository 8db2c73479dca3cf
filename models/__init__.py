"""The embedded model: a 3.3M-parameter Qwen3 that looks things up, and the recipe that made it."""

from pathlib import Path

MINI = Path(__file__).parent / "mini"
"""Where the embedded model lies."""
