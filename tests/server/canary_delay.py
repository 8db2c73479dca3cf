"""What a canary costs a request: `python -m tests.server.canary_delay` prints times to first token, in three states.

Turn and turn about: a server without a canary; one whose canary has nothing to replay; the same while it replays a
prompt of 7,000 tokens, so that every request has to interrupt it.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.server.running import ServerUnderTest, serving, wait_for

COMMAND = "kvserve serve mini --max-model-len 8192".split()
LONG = {"name": "streaming", "budget": 256, "prefill": "chunks"}  # not found in the prefix cache: all is replayed
STATES = ("off", "idle", "replaying")


def tokens(count: int) -> list[int]:
    return random.choices(range(10, 2000), k=count)


def first_token(server: ServerUnderTest) -> float:
    """Milliseconds until a short request has its first token."""
    start = time.monotonic()
    for _ in server.complete(tokens(64), stream=True, max_tokens=1):
        return 1000 * (time.monotonic() - start)
    raise AssertionError("an empty stream")


def outcomes(server: ServerUnderTest) -> dict[str, float]:
    names = ("judged", "interrupted", "dropped", "failed")
    return {name: server.metric("kvserve_canary_replays_total", outcome=name) for name in names}


def during_a_replay(server: ServerUnderTest) -> float:
    """The same, at any moment of a replay; asked again if it was over already."""
    before = outcomes(server)
    server.complete(tokens(7000), LONG, max_tokens=1)
    time.sleep(1.05 + random.random() * 0.3)  # a replay begins after a second
    found = first_token(server)
    wait_for(lambda: outcomes(server)["judged"] > before["judged"], 60)
    return found if outcomes(server)["interrupted"] > before["interrupted"] else during_a_replay(server)


def measure(rounds: int) -> None:
    log = Path(tempfile.mkdtemp())
    with serving(log / "off", COMMAND) as off, serving(log / "on", [*COMMAND, "--kv-canary", "1.0"]) as on:
        for server in (off, on):
            first_token(server)
        found: dict[str, list[float]] = {state: [] for state in STATES}
        for _ in range(rounds):
            found["off"].append(first_token(off))
            found["idle"].append(first_token(on))
            found["replaying"].append(during_a_replay(on))
            print(*(f"{state} {found[state][-1]:.1f}" for state in STATES), flush=True)
    for state, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{state:>9}: median {middle:.1f} ms, quartiles {low:.1f} to {high:.1f}, longest {max(values):.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    measure(parser.parse_args().rounds)
