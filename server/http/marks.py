"""Anthropic's `cache_control` marks: the last one says up to where a prompt is compressed."""

from typing import Any

from starlette.requests import Request
from vllm.entrypoints.anthropic.protocol import AnthropicContentBlock, AnthropicMessagesRequest

from server.http.places import TEXTS, Chat, marked

MARK = "cache_control"


async def read_marks(request: AnthropicMessagesRequest, raw_request: Request) -> None:
    """Remember the place of the last mark for this task. vLLM's body drops the marks, so the bytes are read again."""
    place = last_mark(await raw_request.json())
    if isinstance(place, tuple):
        serving = raw_request.app.state.anthropic_serving_messages
        marked.set([_cut(serving, request, *place, text) for text in TEXTS])
    else:
        marked.set(place)


def last_mark(body: dict[str, Any]) -> tuple[int, int] | str | None:
    """Message and block of the last mark, or "system" if only the system message or the tools have one.

    A mark at the top of the body stands for one on the last block.
    """
    messages = body["messages"]
    for i in reversed(range(len(messages))):
        content = messages[i].get("content")
        blocks = content if isinstance(content, list) else [{}]
        for j in reversed(range(len(blocks))):
            if blocks[j].get(MARK) or body.get(MARK):
                return i, j
    before = [each for name in ("system", "tools") if isinstance(body.get(name), list) for each in body[name]]
    return "system" if any(each.get(MARK) for each in before) else None


def _cut(serving: Any, request: AnthropicMessagesRequest, i: int, j: int, text: str) -> Chat:
    """The chat up to block `j` of message `i`, and a text in the place of what follows, as vLLM converts it."""
    last = request.messages[i]
    blocks = [AnthropicContentBlock(type="text", text=last.content)] if isinstance(last.content, str) else last.content
    other = AnthropicContentBlock(type="text", text=text)
    message = last.model_copy(update={"content": [*blocks[: j + 1], other]})
    short = request.model_copy(update={"messages": [*request.messages[:i], message], "vllm_xargs": None})
    chat: Chat = serving.to_chat_completion_request(short, merge_inline_system=serving._merge_inline_system).messages
    return chat
