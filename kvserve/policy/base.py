"""What every policy is."""

from kvserve.policy.budgeted import Budgeted
from kvserve.policy.choosing import Choosing


class Policy(Choosing, Budgeted):
    """Base of all policies: which tokens stay (`Choosing`), and when and how many (`Budgeted`)."""
