"""The command line, and what it finds out before an engine starts."""
