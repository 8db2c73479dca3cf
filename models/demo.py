"""Prompts to try policies with; needs no torch."""

from models import HARBOUR, MINI
from models.tasks.generators import retrieval_prompt

QUESTION = "What is the name of the ferry to the island?"


def prompt(question: str = QUESTION) -> list[dict[str, str]]:
    """Chat messages for a real model, of about 1,100 tokens: a text about a harbour town, and a question about it."""
    return [{"role": "user", "content": f"{HARBOUR.read_text(encoding='utf-8')}\n{question}"}]


def codes(seed: int = 0, tokens: int = 1500) -> list[dict[str, str]]:
    """Chat messages for the mini model, of about `tokens` tokens: eight codes hidden in prose, one is asked for."""
    from tokenizers import Tokenizer

    return retrieval_prompt(Tokenizer.from_file(str(MINI / "tokenizer.json")), seed, tokens).messages
