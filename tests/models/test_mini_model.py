"""The shipped weights: small, loadable by stock transformers, and able to look things up."""

import pytest

from models.tasks.generators import retrieval_prompt
from models.tasks.tokens import encode

ITEMS, TOKENS = 100, 512


@pytest.fixture(scope="module")
def model(mini):
    torch = pytest.importorskip("torch")
    from models.training.evaluate import load

    torch.set_num_threads(1)
    return load(mini)[1]


def test_chat_questions_are_answered_exactly(model, tokenizer):
    """At least 90 of 100 answers, ``<eos>`` included, are the model's first choice token by token."""
    from models.training.evaluate import right_tokens

    def is_exact(seed: int) -> bool:
        item = retrieval_prompt(tokenizer, seed, TOKENS)
        prompt = tokenizer.apply_chat_template(item.messages, tokenize=False, add_generation_prompt=True)
        start, end = encode(tokenizer, prompt), encode(tokenizer, item.reply + tokenizer.eos_token)
        return all(right_tokens(model, start + end, [False] * len(start) + [True] * len(end)))

    assert sum(is_exact(seed) for seed in range(ITEMS)) >= 0.9 * ITEMS


def test_greedy_generation_stops_by_itself(model, tokenizer):
    item = retrieval_prompt(tokenizer, 0, TOKENS)
    prompt = tokenizer.apply_chat_template(
        item.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    produced = model.generate(**prompt, max_new_tokens=32)[0, prompt["input_ids"].shape[1] :]
    assert produced[-1] == tokenizer.eos_token_id
    assert len(produced) < 32


def test_wilson_intervals_hold_the_share():
    from models.training.evaluate import wilson

    low, high = wilson(99, 100)
    assert low < 0.99 < high < 1
    assert wilson(0, 10)[0] == 0
