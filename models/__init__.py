"""The embedded model: a 3.3M-parameter Qwen3 that looks things up, and the recipe that made it."""
