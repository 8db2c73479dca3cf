"""The server that is asked, through the official client."""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from openai import AsyncOpenAI, BadRequestError, NotFoundError

from evals.items import Item
from evals.protocols import EvalSizes
from evals.ruler import RULER

SENTENCE = 32
"""Tokens of an answer's beginning, at most."""


class Refused(Exception):
    """The server refused a request; the message says why."""


@dataclass(frozen=True)
class Sized:
    """An item in the tokens of the server's model."""

    item: Item
    prompt: list[int]
    answer: list[int]
    context: int  # tokens of the prompt before the question

    @property
    def room(self) -> int:
        """How many tokens an answer may have: those of the right one, in a chat one more, to end it.

        Twice as many where values are looked for in what is said, which has other words too, and those of a sentence
        where its beginning is not given.
        """
        looked_for = self.item.task in RULER
        sentence = SENTENCE if looked_for and not self.item.lead and self.item.form == "chat" else 0
        return len(self.answer) * (2 if looked_for else 1) + (self.item.form == "chat") + sentence

    @property
    def sizes(self) -> EvalSizes:
        return EvalSizes(len(self.prompt), self.context)


@dataclass(frozen=True)
class Said:
    """An answer, and what was kept of its cache, as shares of what would have been without compression."""

    text: str
    kept: float
    bytes: float


Tops = list[dict[int, float]]
"""For each token of an answer: log-probabilities of the most likely tokens there, and of the token itself."""


class Endpoint:
    """Asks one model of one server."""

    def __init__(self, url: str, model: str, key: str = "-") -> None:
        self.model = model
        self._client = AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key, timeout=600, max_retries=2)
        self._root = url.rstrip("/")
        self._plain = False

    async def served(self) -> str:
        """The first model that the server names."""
        return (await self._client.models.list()).data[0].id

    async def policies(self) -> dict[str, dict[str, Any]]:
        """The installed policies by name; none on a server that is not kvserve, which is then sent no policy."""
        try:
            found = await self._client.get("/kv/policies", cast_to=object)
        except NotFoundError:
            self._plain = True
            return {}
        return {card["name"]: card for card in found["data"]}  # type: ignore[index]

    async def sized(self, item: Item) -> Sized:
        """An item with its tokens. The context's are those that it and the whole prompt begin with alike."""
        if item.form == "chat":
            whole = await self._tokens(messages=item.messages, **continued(item))
            before = await self._tokens(
                messages=[{"role": "user", "content": item.context}], add_generation_prompt=False
            )
        else:
            whole = await self._tokens(prompt=item.prompt)
            before = await self._tokens(prompt=item.context)
        answer = await self._tokens(prompt=item.answer, add_special_tokens=False)
        same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return Sized(item, whole, answer, same)

    async def answer(self, sized: Sized, policy: Any) -> Said:
        """Greedy, as many tokens as there is room for. Raises Refused."""
        item = sized.item
        common: dict[str, Any] = {"model": self.model, "temperature": 0}
        common["extra_body"] = {**self._extra(policy), **(continued(item) if item.form == "chat" else {})}
        try:
            if item.form == "chat":
                chat: Any = await self._client.chat.completions.create(
                    messages=cast("Any", item.messages), max_completion_tokens=sized.room, **common
                )
                return said(chat.choices[0].message.content or "", chat.usage)
            plain: Any = await self._client.completions.create(prompt=item.prompt, max_tokens=sized.room, **common)
            return said(plain.choices[0].text, plain.usage)
        except BadRequestError as error:
            raise Refused(_why(error)) from None

    async def forced(self, sized: Sized, policy: Any, top: int) -> Tops:
        """What the model thinks at each token of the answer, all of them given. Raises Refused.

        The answer is the end of the prompt here; a policy acts `at` a token before it, else it would see it. vLLM
        answers for every token of the prompt, so the body is read as plain JSON.
        """
        policy = policy if isinstance(policy, str) else {"at": len(sized.prompt), **policy}
        try:
            body = {"model": self.model, "prompt": sized.prompt + sized.answer, "max_tokens": 1, "temperature": 0}
            body |= {"prompt_logprobs": top, **self._extra(policy)}
            done: Any = await self._client.post("/completions", body=body, cast_to=object)
        except BadRequestError as error:
            raise Refused(_why(error)) from None
        steps = done["choices"][0]["prompt_logprobs"][-len(sized.answer) :]
        return [{int(token): found["logprob"] for token, found in step.items()} for step in steps]

    def _extra(self, policy: Any) -> dict[str, Any]:
        return {} if self._plain else {"kv_policy": policy}

    async def close(self) -> None:
        await self._client.close()

    async def _tokens(self, **body: Any) -> list[int]:
        found = await self._client.post(f"{self._root}/tokenize", body={"model": self.model, **body}, cast_to=object)
        return list(found["tokens"])  # type: ignore[index]


def continued(item: Item) -> dict[str, bool]:
    """How a chat whose answer is begun is told to vLLM."""
    return {"add_generation_prompt": False, "continue_final_message": True} if item.lead else {}


def _why(error: BadRequestError) -> str:
    """What the server said."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message))


class Streamed(NamedTuple):
    """What a stream brought; seconds from a moment before it was asked for."""

    text: str
    usage: Any
    first: float
    whole: float


async def streamed(stream: Any, start: float) -> Streamed:
    """A chat's stream, to its end; start: when it was asked for, by time.perf_counter()."""
    first, text, usage = None, "", None
    async for chunk in stream:
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = first or time.perf_counter() - start
            text += piece
    whole = time.perf_counter() - start
    return Streamed(text, usage, first or whole, whole)


def said(text: str, usage: Any) -> Said:
    kept = (usage.model_extra or {}).get("kv_cache") if usage else None
    if kept is None:
        return Said(text, 1.0, 1.0)
    shares = kept["kept_tokens"] / max(1, kept["logical_tokens"]), kept["resident_bytes"] / max(1, kept["full_bytes"])
    return Said(text, *shares)
