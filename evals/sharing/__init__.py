"""What it saves to compress once and use many times, and what it costs in answers: `python -m evals.sharing`."""
