"""Embedded models, small Qwen3s that look things up, with the recipe that made them; and real ones to be fetched."""

from pathlib import Path

MINI = Path(__file__).parent / "mini"
"""Where the embedded model lies; the others of the family lie beside it."""
HARBOUR = Path(__file__).parent / "harbour.txt"
"""A text of 1,100 tokens for a real model to read: of the README's example and of the page /kv."""
