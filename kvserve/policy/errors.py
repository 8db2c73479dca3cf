"""The two errors of a policy: what a user's input can cause, and what a policy's own code can."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 500
"""Characters of a policy's own message that are passed on."""


class PolicyError(ValueError):
    """A request that cannot be served as asked.

    `param` names the field of the request (`kv_policy` or `kv_policy.<field>`), `reason` is a short
    word for metrics (`unknown_policy`, `bad_parameter`, `unsupported`, `too_long`).
    """

    def __init__(self, message: str, *, param: str = "kv_policy", reason: str = "bad_parameter") -> None:
        super().__init__(message)
        self.param = param
        self.reason = reason

    def inside(self, field: str) -> "PolicyError":
        """The same of a policy that is written in a field of another one."""
        own, place = re.compile(r"\bkv_policy\b"), f"kv_policy.{field}"
        return PolicyError(own.sub(place, str(self)), param=own.sub(place, self.param), reason=self.reason)


class PolicyFault(Exception):
    """A policy's code did not do what the contract asks of it: the end of its request, and of nothing else."""

    def __init__(self, policy: str, doing: str, why: Exception | str) -> None:
        super().__init__(f"kv_policy {policy!r} failed while {doing}: {why if isinstance(why, str) else said(why)}")
        self.policy = policy


def said(error: Exception) -> str:
    """Kind and message of any exception, even of one that cannot be turned into a string."""
    return "".join(traceback.format_exception_only(error)).strip()[:LONGEST]


@contextmanager
def blaming(policy: str, doing: str) -> Iterator[None]:
    """What goes wrong inside is a PolicyFault of `policy`; a refusal (PolicyError) passes as it is."""
    try:
        yield
    except (PolicyError, PolicyFault):
        raise
    except Exception as error:
        raise PolicyFault(policy, doing, error) from error
