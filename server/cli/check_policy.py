"""`kvserve check-policy NAME`: whether an installed policy keeps to the contract, one line a check."""

import sys
from collections.abc import Iterator

from kvserve.policy import Policy
from kvserve.policy.errors import PolicyError
from models.fetch import located
from models.wheels import FetchError
from server.cli import embedded

DESCRIPTION = """Check an installed policy, of this package or of another one.

First on random tensors, without an engine: it keeps exactly as many tokens as its budget says, and those that it
protects; the same input gives the same choice; its tensors are on the device of the view. Then in an engine with the
mini model: with enough budget the answer is the same as without a policy, blocks are given back, and neither other
requests nor the chunks in which a prompt is read change what stays.

Exit code: 0 all checks hold, 1 one does not, 2 there is no such policy.
"""
EXAMPLES = """examples:
  kvserve check-policy snapkv
  kvserve check-policy snapkv --no-engine                          seconds, while you write it
  kvserve check-policy '{"name": "snapkv", "window": 64}'          with parameters of your own
  kvserve check-policy value-norm --model ./my-qwen3               on another model
"""


def check(asked: str, model: str | None = None, engine: bool = True) -> int:
    """Print what each check found; returns the exit code."""
    from kvserve.policy.request import parse

    try:
        policy = parse(asked)
        folder = located(model) if model else embedded.folder()
    except (PolicyError, FetchError) as error:
        print(f"kvserve check-policy: {error}", file=sys.stderr)
        return 2
    failed = 0
    for state, line in _lines(policy, str(folder) if engine and folder else None):
        failed += state == "failed"
        print(line, flush=True)
    print(f"{policy.name}: {f'{failed} checks failed' if failed else 'all checks hold'}")
    return 1 if failed else 0


def _lines(policy: Policy, folder: str | None) -> Iterator[tuple[str, str]]:
    """folder: a model for the checks in an engine, None to leave them out."""
    from kvserve import testing

    results = [testing.run(policy)]
    if folder is not None:
        from kvserve.testing.engine import run

        results.append(run(policy, folder))
    for result in (each for some in results for each in some):
        why = f": {result.why}" if result.why else ""
        yield result.state, f"{result.state:7}  {result.check}  {result.about}{why}"
