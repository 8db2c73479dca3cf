"""All that touches vLLM's inside: scheduler side, worker side, books, and the front in the API process."""
