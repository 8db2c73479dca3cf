"""Where a chat is compressed: `at: "last_message"`, `at: "system"` and Anthropic's cache marks become token positions.

Templates write a message differently when others follow (they drop the thinking of earlier answers, or refuse a chat
without a user), so a shorter chat need not begin like the whole one. The chat is therefore rendered again with two
other texts behind the place: the position is the length of what all of them begin with.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import has_non_text_content

from kvserve.policy import Policy
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError

TEXTS = ("1", "x")
"""What stands behind the place instead. They begin differently, so one of them differs from what really follows."""

SYSTEM_ROLES = ("system", "developer")

Chat = list[Any]
Render = Callable[..., Awaitable[Any]]

marked: ContextVar[list[Chat] | str | None] = ContextVar("kvserve_marked", default=None)
"""Of a request with cache marks: the chats with other texts behind the last mark, or the word for its place."""


def watch(renderer: Any, observe: Callable[[PolicyError], None]) -> None:
    """Give each chat that `renderer` (vllm.renderers.online_renderer.OnlineRenderer) renders its position.

    observe: told of each refusal, which becomes an HTTP 400.
    """
    stock: Render = renderer.preprocess_chat

    async def preprocess_chat(request: Any, messages: Chat, *args: Any, **more: Any) -> Any:
        _hold(messages)
        made = await stock(request, messages, *args, **more)
        try:
            others = _others(request, messages, more.get("tool_dicts"))
            if others:
                again = {**more, "parser": None}  # which has changed the request already
                texts = [_tokens(await stock(request, other, *args, **again)) for other in others]
                _put(request, min(_common(_tokens(made), text) for text in texts))
        except PolicyError as error:
            observe(error)
            raise VLLMValidationError(str(error), parameter=error.param) from None
        return made

    renderer.preprocess_chat = preprocess_chat


def _hold(messages: Chat) -> None:
    """Pydantic hands out some lists as iterators that can be read once; here they are read three times."""
    for message in messages:
        for name, value in message.items() if isinstance(message, dict) else ():
            if isinstance(value, Iterator):
                message[name] = list(value)


def _tokens(made: Any) -> Sequence[int]:
    """Of what `preprocess_chat` returns: (conversation, [engine input])."""
    tokens: Sequence[int] = made[1][0]["prompt_token_ids"]
    return tokens


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _others(request: Any, messages: Chat, tools: Any) -> list[Chat]:
    """The chats with other texts behind the place that the request names; none if it names none. Raises PolicyError."""
    policy = _policy(request)
    if policy is None or isinstance(policy.at, int):
        return []
    place = policy.at or (marked.get() if takes_place(policy) else None)
    if not place:
        return []
    _refuse_moved(request, messages, policy.at)
    if place == "last_message":
        return [_last_replaced(messages, text) for text in TEXTS]
    return _behind_system(messages, tools, policy.at) if isinstance(place, str) else place


def takes_place(policy: Policy) -> bool:
    """Whether it can be told where to compress."""
    return policy.compresses and type(policy).model_fields["at"].annotation is not type(None)


def _policy(request: Any) -> Policy | None:
    text = (getattr(request, "vllm_xargs", None) or {}).get(wire.KEY)
    return None if text is None else wire.read(text).policy


def _last_replaced(messages: Chat, text: str) -> Chat:
    dropped = ("tool_calls", "reasoning", "reasoning_content")
    last = {name: value for name, value in messages[-1].items() if name not in dropped}
    return [*messages[:-1], {**last, "content": text}]


def _behind_system(messages: Chat, tools: Any, at: str | None) -> list[Chat]:
    roles = [message.get("role") for message in messages]
    system = next((i for i, role in enumerate(roles) if role not in SYSTEM_ROLES), len(roles))
    if not system and not tools:
        raise PolicyError(
            f"kv_policy.at is {at!r}, but this chat has no system message and no tools; allowed: 'last_message' or a "
            "token position",
            param="kv_policy.at",
        )
    return [[*messages[:system], {"role": "user", "content": text}] for text in TEXTS]


def _refuse_moved(request: Any, messages: Chat, at: str | None) -> None:
    """Other texts would move the place itself if the prompt is cut at its front; pictures would be read again."""
    said = f"kv_policy.at is {at!r}" if at is not None else "cache_control says where to compress"
    cut = getattr(request, "truncate_prompt_tokens", None) is not None
    if cut or getattr(request, "truncation", None) == "auto":
        field = "truncate_prompt_tokens" if cut else "truncation"
        why = f"the prompt may be cut ({field}); leave {field} out"
    elif has_non_text_content(messages):
        why = "the chat has more than text"
    else:
        return
    raise PolicyError(f"{said}, but {why}; allowed then: a token position", param="kv_policy.at", reason="unsupported")


def _put(request: Any, position: int) -> None:
    """The canonical string of the request's policy, with the position in the place of the word."""
    text = (request.vllm_xargs or {})[wire.KEY]
    if position == 0:
        raise PolicyError(
            "kv_policy.at: nothing of this chat's prompt stands before that place; allowed: a token position",
            param="kv_policy.at",
        )
    placed = json.dumps({**json.loads(text), "at": position}, sort_keys=True)
    request.vllm_xargs = {**request.vllm_xargs, wire.KEY: placed}
