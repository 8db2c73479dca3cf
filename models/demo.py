"""The prompt of the README's example; needs no torch."""

from tokenizers import Tokenizer

from models import MINI
from models.tasks.generators import retrieval_prompt


def prompt(seed: int = 0, tokens: int = 1500) -> list[dict[str, str]]:
    """Chat messages of about `tokens` tokens: eight codes hidden in prose, and a question for one of them."""
    return retrieval_prompt(Tokenizer.from_file(str(MINI / "tokenizer.json")), seed, tokens).messages
