"""What the papers claim, tested small: one module per paper, one command. `python -m evals.claims` runs it."""
