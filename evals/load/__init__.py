"""What answers cost, and whether they are right: `python -m evals.load`."""
