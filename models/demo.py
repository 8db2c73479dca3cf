"""The prompt of the README's example; needs no torch."""

from pathlib import Path

from tokenizers import Tokenizer

from models.tasks import retrieval_prompt

TOKENIZER = Path(__file__).parent / "mini" / "tokenizer.json"


def prompt(seed: int = 0, tokens: int = 1500) -> list[dict[str, str]]:
    """Chat messages of about `tokens` tokens: eight codes hidden in prose, and a question for one of them."""
    return retrieval_prompt(Tokenizer.from_file(str(TOKENIZER)), seed, tokens).messages
