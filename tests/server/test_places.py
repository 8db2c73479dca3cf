"""Words and cache marks become token positions: over a template of our own, and on a real server."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError

from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError
from server.http import marks, places

TOOLS = [{"type": "function", "function": {"name": "look"}}]
CHAT = [
    {"role": "system", "content": "rules"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two", "reasoning": "hm"},
    {"role": "user", "content": "x three"},
]


def written(messages: Any, tools: Any = None) -> str:
    """As templates do that drop the thinking of all answers but those after the last user."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    text = "T" if tools else ""
    for i, message in enumerate(messages):
        thinking = message.get("reasoning", "") if i > last else ""
        text += f"<{message['role']}>{thinking}{message['content']}</>"
    return text + "<assistant>"


class Renderer:
    """One token per character."""

    async def preprocess_chat(self, request: Any, messages: Any, *, tool_dicts: Any = None, **more: Any) -> Any:
        return messages, [{"prompt_token_ids": [*written(messages, tool_dicts).encode()]}]


def placed(policy: Any, messages: Any = CHAT, refusals: Any = None, tools: Any = None, **fields: Any) -> Any:
    """The text up to the position that the request is given; None if it is given none."""
    renderer = Renderer()
    places.watch(renderer, (refusals if refusals is not None else []).append)
    request = SimpleNamespace(vllm_xargs={wire.KEY: wire.read(policy).text, "other": 1}, **fields)
    _, [prompt] = asyncio.run(renderer.preprocess_chat(request, messages, tool_dicts=tools, parser="p"))
    assert request.vllm_xargs["other"] == 1
    accepted = wire.read(request.vllm_xargs[wire.KEY])
    assert accepted.text == request.vllm_xargs[wire.KEY], "not the canonical string"
    at = accepted.policy.at
    return at if at is None else bytes(prompt["prompt_token_ids"][:at]).decode()


def asked(at: Any) -> dict[str, Any]:
    return {"name": "keydiff", "budget": 0.5, "at": at}


def test_last_message_is_all_that_stands_before_it() -> None:
    head = "<system>rules</><user>one</><assistant>two</><user>"
    assert placed(asked("last_message")) == head
    assert placed(asked("last_message"), CHAT[1:2]) == "<user>"
    answered = [*CHAT, {"role": "assistant", "content": "", "tool_calls": iter([])}, {"role": "tool", "content": "4"}]
    assert placed(asked("last_message"), answered).endswith("<user>x three</><assistant></><tool>")


def test_system_is_the_system_message_and_the_tools() -> None:
    assert placed(asked("system")) == "<system>rules</><user>"
    assert placed(asked("system"), tools=TOOLS) == "T<system>rules</><user>"
    assert placed(asked("system"), CHAT[1:], tools=TOOLS) == "T<user>"


def test_positions_and_other_policies_stay_as_they_are() -> None:
    assert placed(asked(7)) == "<system"
    assert placed(asked(None)) is None
    assert placed("full") is None


@pytest.mark.parametrize(
    ("at", "messages", "fields", "says"),
    [
        ("system", CHAT[1:], {}, "'system', but this chat has no system message and no tools; allowed: 'last_message'"),
        ("last_message", CHAT, {"truncate_prompt_tokens": 9}, r"may be cut \(truncate_prompt_tokens\)"),
        ("last_message", CHAT, {"truncation": "auto"}, r"may be cut \(truncation\)"),
        ("system", [*CHAT, {"role": "user", "content": [{"type": "image_url", "image_url": 1}]}], {}, "more than text"),
    ],
)  # fmt: skip
def test_refused_by_name(at: str, messages: Any, fields: Any, says: str) -> None:
    refusals: list[PolicyError] = []
    with pytest.raises(VLLMValidationError, match=says):
        placed(asked(at), messages, refusals, **fields)
    assert [refusal.param for refusal in refusals] == ["kv_policy.at"]


def test_the_last_mark_counts() -> None:
    mark, text = {"cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "a"}
    question = {"role": "user", "content": "b"}
    document = {"role": "user", "content": [text, {**text, **mark}, text]}
    assert marks.last_mark({"messages": [document, question]}) == (0, 1)
    assert marks.last_mark({"messages": [document, question], **mark}) == (1, 0)
    assert marks.last_mark({"messages": [question], "system": [{**text, **mark}]}) == "system"
    assert marks.last_mark({"messages": [question], "tools": [{"name": "look", **mark}], "system": "s"}) == "system"
    assert marks.last_mark({"messages": [question], "system": "s", "tools": None}) is None


@pytest.mark.parametrize(
    ("policy", "at"), [("keydiff:0.5", "<system>rules</><user>"), (asked(3), "<sy"), ("ksa", None), ("full", None)]
)
def test_a_mark_stands_for_at_where_the_request_says_nothing(policy: Any, at: str | None) -> None:
    token = places.marked.set("system")
    try:
        assert placed(policy) == at
    finally:
        places.marked.reset(token)
