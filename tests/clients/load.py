"""Streams that keep a server busy, and what became of each."""

import threading
from typing import Any

import openai

from tests.server.running import ServerUnderTest

PROMPT = "the cat sat on the mat and the dog ran away . " * 40
LONG = 3000
"""Tokens of an answer that takes some seconds at least."""

POLICIES = (None, "streaming:0.25", "snapkv:0.25", None)


class Stream:
    """One streaming completion, read by a thread of its own."""

    def __init__(self, server: ServerUnderTest, policy: Any, tokens: int) -> None:
        self.chunks = 0
        self.end: Any = None  # a finish reason, or the exception that ended it
        self._call = (server, policy, tokens)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        server, policy, tokens = self._call
        try:
            for chunk in server.complete(PROMPT, policy, max_tokens=tokens, stream=True):
                self.chunks += 1
                self.end = chunk.choices[0].finish_reason
        except openai.OpenAIError as error:
            self.end = error


def streams(server: ServerUnderTest, tokens: int) -> list[Stream]:
    """One stream of `tokens` tokens for each of POLICIES."""
    return [Stream(server, policy, tokens) for policy in POLICIES]
