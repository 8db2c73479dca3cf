"""`seed` on a request whose prompt is read in several steps, on CPU: a work-around for vLLM 0.32 and 0.33.

A step that reads a part of a prompt draws a token for it too, and drops it. vLLM then sets the request's generator
back by `set_offset`, which a CPU generator does not have: the engine dies. Here such a request's generator is not
drawn from in the first place, which leaves it where setting it back would have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kvserve.startup.version import vllm_version

NEEDED = (vllm_version() or "").startswith(("0.32.", "0.33."))
"""Look at `GPUModelRunner._bookkeeping_sync` of another version before this one is made to include it."""


class Seeds:
    """Mixed in front of vLLM's V1 runner for CPU."""

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        with _undrawn(self, NEEDED):
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _undrawn(runner: Any, needed: bool) -> Iterator[None]:
    """Inside, rows whose token is going to be dropped have no generator."""
    generators: dict[int, Any] = runner.input_batch.generators
    if not (needed and generators):
        yield
        return
    dropped = np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs]).tolist()
    taken = {row: generators.pop(row) for row in dropped if row in generators}
    try:
        yield
    finally:
        generators.update(taken)
