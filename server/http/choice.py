"""Which policy a request gets: body field, then header, then `vllm_xargs`, then the server's default."""

from collections.abc import Mapping
from typing import Any

from kvserve.policy import Facts, Policy
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError, blaming
from kvserve.policy.request import Accepted
from kvserve.startup.options import KVOptions

HEADER = "X-KV-Policy"

SWITCHED_OFF = (
    "this server was not started with kvserve's scheduler and can only serve 'full'; start it with `kvserve serve`"
)


class Choice:
    """What a server answers to the question of a request's policy.

    `facts` is None where kvserve is not switched on: then every compressing policy is refused.
    Raises PolicyError if the server's own default cannot be served.
    """

    def __init__(self, options: KVOptions, facts: Facts | None) -> None:
        self._facts = facts
        self.default = None if options.policy is None else self.checked(options.policy)

    def of(self, field: Any, headers: Mapping[str, str], xargs: Mapping[str, Any] | None) -> Accepted | None:
        """The validated policy of a request; None if neither the request nor the server names one.

        Raises PolicyError; a null field counts as absent.
        """
        for named in (field, headers.get(HEADER), (xargs or {}).get(wire.KEY)):
            if named is not None:
                return self.checked(named)
        return self.default

    def checked(self, value: Any) -> Accepted:
        accepted = wire.read(value)
        if (why := self.refusal(accepted)) is not None:
            raise why
        return accepted

    def refusal(self, accepted: Accepted) -> PolicyError | None:
        """Why this server cannot run the policy with these parameters; None if it can."""
        policy = accepted.policy
        if not policy.compresses:
            return None
        if self._facts is None:
            return PolicyError(f"kv_policy {policy.name!r}: {SWITCHED_OFF}", reason="unsupported")
        try:
            with blaming(policy.name, "its request was being checked"):
                wire.settled(accepted.text, self._facts)
        except PolicyError as error:
            return error
        return None


def shown(policy: Policy) -> str:
    """The short form, as users write it: `name` or `name:budget`."""
    return f"{policy.name}:{policy.budget}" if policy.compresses and policy.budget is not None else policy.name
