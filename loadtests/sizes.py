"""How large every scenario is. `SHORT` fits into ten minutes on two cores, `QUICK` only proves that all of it runs."""

from dataclasses import dataclass, replace

BLOCK = 128
"""Tokens per KV block: what vLLM takes on a CPU, given to the server so that pools can be computed."""


@dataclass(frozen=True)
class Load:
    """What one load generator sends: `requests` in all, `clients` at a time. Lengths in tokens."""

    requests: int
    clients: int
    prompt: int
    output: int
    prefixes: int = 0  # so many different beginnings, shared by the prompts
    prefix: int = 0  # how long they are; on top of `prompt`

    @property
    def blocks(self) -> int:
        """Of one request at its end, uncompressed."""
        return -(-(self.prefix + self.prompt + self.output) // BLOCK)


@dataclass(frozen=True)
class LoadSizes:
    """Of all scenarios; policies are named as requests name them."""

    # Lengths are a little less than whole blocks: decoded and encoded again, a random prompt may grow by a token.
    crossover: Load = Load(requests=24, clients=12, prompt=2048, output=192)
    shares: tuple[float, ...] = (1.0, 0.5, 0.25)  # pool / what all clients need uncompressed; the largest first
    policies: tuple[str, ...] = ("streaming", "random", "scissorhands")
    budgets: tuple[int, ...] = (512, 1024)
    repeats: int = 1

    mixed: Load = Load(requests=12, clients=4, prompt=1024, output=160)  # of each policy
    mixed_policies: tuple[str, ...] = ("full", "streaming:512", "scissorhands:512")

    prefix: Load = Load(requests=16, clients=4, prompt=120, output=48, prefixes=2, prefix=1024)
    prefix_policies: tuple[str, ...] = ("full", "streaming:512", "snapkv:512", "scissorhands:512", "h2o:512")

    decode: Load = Load(requests=8, clients=8, prompt=256, output=1000)
    decode_policies: tuple[str, ...] = ("full", "streaming:512", "scissorhands:512")

    churn: Load = Load(requests=64, clients=6, prompt=1024, output=512)  # of each policy; killed while they run
    churn_policies: tuple[str, ...] = ("full", "streaming:512", "scissorhands:512")
    churn_rounds: int = 3

    soak: Load = Load(requests=0, clients=3, prompt=1024, output=160)  # of each policy
    soak_policies: tuple[str, ...] = ("full", "scissorhands:512")
    soak_seconds: int = 45

    def __post_init__(self) -> None:
        if list(self.shares) != sorted(self.shares, reverse=True):
            raise ValueError(f"shares {self.shares} must begin with the largest")
        least = self.pool(self.shares[-1]) * BLOCK
        if least < self.longest:
            raise ValueError(f"shares {self.shares}: a pool of {least} tokens cannot hold a request of {self.longest}")

    @property
    def longest(self) -> int:
        """Tokens of the longest request, in whole blocks: what the server must accept."""
        return BLOCK * max(load.blocks for load in (self.crossover, self.mixed, self.prefix, self.decode, self.churn))

    def pool(self, share: float) -> int:
        """Blocks of a pool that holds this share of what all clients need uncompressed."""
        return round(share * self.crossover.clients * self.crossover.blocks)


SHORT = LoadSizes()
LONG = replace(
    SHORT,
    crossover=replace(SHORT.crossover, requests=48),
    shares=(1.5, 1.0, 0.75, 0.5, 0.375, 0.25),
    repeats=3,
    mixed=replace(SHORT.mixed, requests=32),
    prefix=replace(SHORT.prefix, requests=48),
    decode=replace(SHORT.decode, requests=16, output=2000),
    churn_rounds=10,
    soak_policies=SHORT.mixed_policies,
    soak_seconds=3600,
)
QUICK = replace(
    SHORT,
    crossover=Load(requests=4, clients=4, prompt=480, output=24),
    shares=(1.0, 0.5),
    policies=("streaming",),
    budgets=(256,),
    mixed=Load(requests=2, clients=1, prompt=480, output=24),
    mixed_policies=("full", "streaming:256"),
    prefix=Load(requests=4, clients=2, prompt=100, output=8, prefixes=1, prefix=384),
    prefix_policies=("full", "streaming:256"),
    decode=Load(requests=2, clients=2, prompt=100, output=280),
    decode_policies=("streaming:256",),
    churn=Load(requests=64, clients=2, prompt=480, output=512),
    churn_policies=("full", "streaming:256"),
    churn_rounds=1,
    soak=Load(requests=0, clients=2, prompt=200, output=240),
    soak_policies=("streaming:256",),
    soak_seconds=5,
)
