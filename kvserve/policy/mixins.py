"""What some policies have beside others: attention mass at a part of its cost, and budgets that differ by layer."""

from typing import ClassVar, Literal

from pydantic import Field

from kvserve.policy.base import Policy
from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import Evidence, Mass, thinned
from kvserve.policy.types import Facts


class GathersMass(Policy):
    """A policy that reads `mass`, whose cost for the prompt can be divided by looking at fewer queries."""

    reads: ClassVar[tuple[Evidence, ...]] = (Mass(),)

    every: int = Field(
        1,
        ge=1,
        le=64,
        description="Only each n-th query of the prompt counts, n times: an estimate of the attention mass at an "
        "n-th of its cost; 1 is exact, as in the paper",
    )

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return thinned(self.reads, self.every)


class UnevenLayers(Policy):
    """A policy that gives layers budgets of different size: it needs layers with block tables of their own."""

    granularity: Literal["layer", "group"] | None = Field(
        None,
        description="'layer': every layer gets its own budget, which needs a server with one layer per group; "
        "'group': layers that share a block table get the mean of their budgets; null: by layer where the server can, "
        "else by group, which usage.kv_cache says",
    )

    @property
    def uneven(self) -> bool:
        """Whether these parameters make budgets differ at all."""
        return True

    def bundled(self, facts: Facts) -> bool:
        return self.uneven and facts.groups < facts.num_layers

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.granularity == "layer" and self.bundled(facts):
            raise PolicyError(
                f"kv_policy {self.name!r} with granularity 'layer' gives each of the {facts.num_layers} layers a "
                f"budget of its own, but this server holds them in {facts.groups} group(s); start it with --kv-groups "
                f"{facts.num_layers}, or leave granularity out for the mean budget of each group",
                param="kv_policy.granularity",
                reason="unsupported",
            )
