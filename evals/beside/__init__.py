"""kvserve beside NVIDIA kvpress: the same model, prompts and budgets. `python -m evals.beside`."""
