"""kvserve: the engine that gives each request of a running vLLM batch its own KV-cache policy."""

__version__ = "0.1.0"
