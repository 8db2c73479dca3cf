"""Load that gives every panel something to show."""

import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from tests.server.running import ServerUnderTest

CLIENTS = 8
POLICIES: list[Any] = [
    None,
    "streaming:0.25",
    {"name": "streaming", "budget": 512, "when": "pressure"},
    "snapkv:0.5",
    None,
    "scissorhands:0.5",
    {"name": "random", "budget": 512, "when": "pressure"},
    "elastic-cache:0.5",  # the one that merges
]
SAMPLING = (1, 3)  # clients whose answers no canary can judge; their first ones are compressed
SHARING = {"name": "keydiff", "budget": 0.25, "at": 900, "share": True}
FAILING = {"name": "raising", "budget": 256, "where": "select"}
"""Of a plug-in with a fault (tests.engine.raising)."""
REFUSED: list[Any] = ["no-such-policy", "streaming:0", {"name": "streaming", "budget": 0.5, "typo": 1}]


RARE = {
    "kvserve_policy_errors_total": 3,
    "kvserve_pressure_compactions_total": 3,
    "kvserve_preemptions_avoided_total": 2,
    "kvserve_prefix_hits_total": 3,
}
"""Counters that a slow machine may not have moved, and how far they must have come: a rate needs more than one step."""
MOST_SECONDS = 180.0


def drive(server: ServerUnderTest, seconds: float) -> None:
    """Clients that ask without a pause, all with different prompts; one that asks for what does not exist.

    Two more have prompts that begin alike, and share that. At first all ask for no compression: their prompts fit into
    the pool, and their answers do not. Goes on for at least so many seconds, and until what is rare has happened too.
    """
    start = time.monotonic()

    def over() -> bool:
        spent = time.monotonic() - start
        return spent > seconds and (spent > MOST_SECONDS or all(server.metric(n) >= least for n, least in RARE.items()))

    with ThreadPoolExecutor(CLIENTS + 3) as pool:
        list(pool.map(lambda number: _complete(server, _prompt(number, 1000), None, 400), range(CLIENTS)))
        asking = [pool.submit(_ask, server, over, number) for number in range(CLIENTS)]
        asking += [pool.submit(ask, server, over) for ask in (_ask_wrongly, _ask_alike, _ask_alike)]
        for one in asking:
            one.result()


def _ask(server: ServerUnderTest, over: Callable[[], bool], number: int) -> None:
    seed = itertools.count(CLIENTS + number, CLIENTS)
    for policy in itertools.cycle(POLICIES[number:] + POLICIES[:number]):
        if over():
            return
        _complete(server, _prompt(next(seed), 1400), policy, 150, temperature=float(number in SAMPLING))


def _prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(10, 2000), k=length)


def _complete(server: ServerUnderTest, prompt: list[int], policy: Any, tokens: int, temperature: float = 0.0) -> None:
    for _ in server.complete(prompt, policy, stream=True, max_tokens=tokens, temperature=temperature):
        pass


def _ask_alike(server: ServerUnderTest, over: Callable[[], bool]) -> None:
    for seed in itertools.count(-2, -1):
        if over():
            return
        _complete(server, _prompt(-1, 900) + _prompt(seed, 100), SHARING, 20)


def _ask_wrongly(server: ServerUnderTest, over: Callable[[], bool]) -> None:
    prompt = _prompt(-1, 600)
    for policy in itertools.cycle([*REFUSED, FAILING]):
        if over():
            return
        try:
            server.complete(prompt, policy)
        except (openai.BadRequestError, openai.InternalServerError):
            time.sleep(0.3)
        else:
            raise AssertionError(f"{policy} was served")
