"""Side passes: rows that go through the layers of the served model, and over caches that they do not enter.

The modules of the model do the work; what their attention would do is done by a function in its place.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_pp_group
from vllm.forward_context import set_forward_context


@contextmanager
def instead(forwards: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """Inside, these modules do what the functions do."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def whole_pass(
    runner: Any, token_ids: Tensor, positions: Tensor, forwards: Mapping[Any, Callable[..., Tensor]]
) -> None:
    """Rows of these tokens (r,) at these positions (r,) through all layers, with functions in the place of modules.

    Batches are vLLM's and stay as they are: call it between steps. Parts of the model that are no attention see the
    rows as those of a prompt of their own.
    """
    with (
        torch.inference_mode(),
        instead(forwards),
        set_forward_context(None, runner.vllm_config, num_tokens=len(positions), slot_mapping={}, skip_compiled=True),
    ):
        # M-RoPE: a token of text has the same position on all three axes.
        at = positions.expand(3, -1) if runner.model_config.uses_mrope else positions
        runner.model(input_ids=token_ids, positions=at, **_from_earlier_stages(runner, len(positions)))


def _from_earlier_stages(runner: Any, rows: int) -> dict[str, Any]:
    """In the place of what earlier pipeline stages would send: one random row, as often as there are rows."""
    if get_pp_group().is_first_rank:
        return {}
    made = runner.model.make_empty_intermediate_tensors(rows, runner.model_config.dtype, runner.device)
    generator = torch.Generator().manual_seed(0)
    for tensor in made.tensors.values():
        tensor[:] = torch.randn(tensor.shape[1:], generator=generator).to(tensor)
    return {"intermediate_tensors": made}


class LayerwisePass:
    """Rows that go from one decoder layer to the next when they are told to: while a step runs, say.

    Layers are to be called as vLLM's are: with positions, hidden states (r, d) and what is added to them behind.
    """

    def __init__(self, embeddings: Tensor, positions: Tensor) -> None:
        self.positions = positions  # (r,)
        self._hidden, self._residual = embeddings.clone(), None  # vLLM's norms write over their input

    def go(self, block: Any, attention: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Through one decoder layer; attention: positions (r,), normed hidden states (r, d) -> (r, d)."""
        with instead({block.self_attn: attention}):
            self._hidden, self._residual = block(self.positions, self._hidden, self._residual)
