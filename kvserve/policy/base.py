"""What every policy is."""

from kvserve.policy.budgeted import Budgeted
from kvserve.policy.choosing import Choosing
from kvserve.policy.errors import PolicyError
from kvserve.policy.types import Facts


class Policy(Choosing, Budgeted):
    """Base of all policies: which tokens stay (`Choosing`), and when and how many (`Budgeted`)."""

    @property
    def across_layers(self) -> bool:
        """Whether layers decide together, by evidence of all of them: then one worker must have them all.

        A class with a `choose` of its own is taken to; it says so here if it does not.
        """
        return self.own_shares or type(self).choose is not Choosing.choose

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.share and facts.share_problem is not None:
            raise PolicyError(
                f"kv_policy.share is true, but compressed prefixes cannot be shared here: {facts.share_problem}; leave "
                "it out",
                param="kv_policy.share",
                reason="unsupported",
            )
        if facts.pipeline_parallel > 1 and self.compresses and self.across_layers:
            raise PolicyError(
                f"kv_policy {self.name!r} decides by the evidence of all layers together, but this server has them on "
                f"{facts.pipeline_parallel} pipeline stages; choose another policy, or start the server with pipeline "
                "parallelism 1",
                param="kv_policy.name",
                reason="unsupported",
            )
