"""Log-probabilities of a prompt under a policy: those of the compressed cache, or refused; never others' in silence."""

from typing import Any

import openai
import pytest

from tests.server.running import MODEL, ServerUnderTest

PROMPT = "The code for amber otter is 4821. " + "the cat sat on the mat . " * 60 + "The code for amber otter is 4821."
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def _logprobs(server: ServerUnderTest, policy: Any) -> list[float]:
    """Of the prompt's tokens but the first."""
    answer = server.complete(PROMPT, policy, max_tokens=1, echo=True, logprobs=1)
    found: list[float] = answer.choices[0].logprobs.token_logprobs[1:-1]
    return found


@pytest.mark.parametrize("policy", ["streaming:0.1", {"name": "snapkv", "budget": 64, "when": "pressure"}])
def test_without_a_place_to_compress_they_are_refused(server: ServerUnderTest, policy: Any) -> None:
    extra = {"kv_policy": policy, "prompt_logprobs": 1}
    calls: list[Any] = [
        lambda: server.complete(PROMPT, policy, echo=True, logprobs=1),
        lambda: list(server.complete(PROMPT, policy, echo=True, logprobs=0, stream=True)),
        lambda: server.complete(PROMPT, extra_body=extra),
        lambda: server.client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=extra),
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="log-probabilities of the prompt") as caught:
            call()
        assert caught.value.param == "kv_policy"


def test_from_that_place_on_they_are_the_compressed_caches(server: ServerUnderTest) -> None:
    full = _logprobs(server, "full")
    at = len(full) + 1 - 20
    compressed = _logprobs(server, {"name": "streaming", "budget": 32, "at": at})
    assert compressed[: at - 1] == pytest.approx(full[: at - 1], abs=1e-3)
    assert compressed[-8:] != pytest.approx(full[-8:], abs=0.1)  # the code can no longer be looked up
    assert sum(compressed[-8:]) < sum(full[-8:])


def test_what_says_nothing_of_the_prompt_is_served(server: ServerUnderTest) -> None:
    echoed = server.complete(PROMPT, "streaming:0.1", echo=True, max_tokens=2)
    assert echoed.choices[0].text.startswith(PROMPT)
    generated = server.complete(PROMPT, "streaming:0.1", logprobs=1, max_tokens=2)
    assert len(generated.choices[0].logprobs.token_logprobs) == 2
