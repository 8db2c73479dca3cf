"""A server under one scenario after the other, and what all of them need."""

import sys
from dataclasses import dataclass

from loadtests.generator import Generator, LoadResult, Target
from loadtests.measurements import Measurements
from loadtests.sizes import Load, LoadSizes
from loadtests.watch import Watch
from measuring.server import Server

SLACK = 10
"""A request counts for goodput if it is at most so many times slower than one that has the server for itself."""

Quantities = dict[str, float]


@dataclass
class Stage:
    """One server with its pool."""

    server: Server
    generator: Generator
    sizes: LoadSizes
    notes: Measurements
    target: Target
    share: float  # of what all clients of the crossover need uncompressed

    def measured(self, policy: str, load: Load) -> Quantities:
        """One run, alone on the server, with what the server saw of it."""
        length = load.prefix + load.prompt
        say(f"{policy}: {load.requests} requests of {length} + {load.output} tokens, {load.clients} at a time")
        preempted = self.preemptions()
        with Watch(self.server) as watch:
            found = self.generator.run(policy, load, self.target)
        self.server.wait_until_empty()
        return {
            "clients": load.clients,
            "at_once": watch.at_once,
            **quantities(found),
            "preempted": self.preemptions() - preempted,
            "others": watch.others,
        }

    def preemptions(self) -> float:
        return self.server.metric("vllm:num_preemptions_total")


def quantities(found: LoadResult) -> Quantities:
    """As columns of the table."""
    values = found._asdict()
    del values["completed"], values["seconds"]
    return values


def calibrate(generator: Generator, load: Load) -> Target:
    """What one uncompressed request takes that has the server for itself, times SLACK. Warms the server up, too."""
    say("warming up")
    generator.run("full", alone(load, requests=2))
    say("one uncompressed request at a time: the measure of goodput")
    found = generator.run("full", alone(load, requests=4))
    # A short answer may arrive in one piece; no target is zero.
    return Target(SLACK * found.ttft_p50_ms, max(1.0, SLACK * found.tpot_p50_ms))


def alone(load: Load, requests: int) -> Load:
    return Load(requests=requests, clients=1, prompt=load.prompt, output=load.output)


def say(text: str) -> None:
    """Progress."""
    print(f"    {text}", file=sys.stderr, flush=True)
