"""What released code made of Scissorhands, as rankings of slots: two variants beside the paper's low votes."""

from collections.abc import Callable

import torch
from torch import Tensor

from kvserve.policy import LayerView, unseen_slots

_ROUNDING = 1 - 1e-5  # lowers the threshold 1/n, so that uniform attention is average, not low


def columns(view: LayerView, name: str, reduce: Callable[[Tensor, Tensor], Tensor], history: int) -> Tensor:
    """(H, n, up to `history`): one column for each of the last queries, oldest first, left in `view.state[name]`.

    reduce: (G, W, n) attention and (W,) slots seen -> (W, n). Queries that an earlier round saw are not asked
    again: what they said then, of the slots held then, is carried.
    """
    fresh = view.per_head(reduce, last=_fresh(view)).transpose(1, 2)
    earlier = view.state.get(name)
    if earlier is not None:
        fresh = torch.cat([earlier, fresh], dim=2)
    view.state[name] = fresh[:, :, -history:]
    return view.state[name]


def low_votes(probs: Tensor, seen: Tensor) -> Tensor:
    """(W, n) uint8: slots that a query could see and gave less than the average attention 1/n."""
    low = _group_mean(probs) < (_ROUNDING / seen)[:, None]
    young, unseen = unseen_slots(seen, low.shape[1])
    low[:, young:].masked_fill_(unseen, False)
    return low.view(torch.uint8)


def mean_attention(view: LayerView, history: int, measure: str) -> Tensor:
    """cold-compress, (H, n): what the queries that saw a slot, at most the last `history`, gave it on the mean.

    measure: "probability", or "bit" for the share of these queries that gave it the average 1/n or more.
    Probabilities are carried as float16: half the memory, and the mean of hundreds does not need more.
    """
    said = columns(view, measure, _bits if measure == "bit" else _probabilities, history)
    age = view.logical - view.positions
    return said.sum(dim=-1, dtype=torch.float32) / age.clamp(1, max(1, said.shape[2]))


def last_use(view: LayerView, history: int, percentile: float) -> Tensor:
    """official, (H, n): when a query last gave a slot more than that percentile of its row, as logical position
    plus 1; 0 if none of the last `history` queries did. Left in `view.state["used"]`.

    As in the release a prompt query's row is as long as the prompt: slots that it could not see count as zeros.
    """
    last = max(1, _fresh(view))
    prompt = view.query_positions[-last:] < view.prompt

    def above(probs: Tensor, seen: Tensor) -> Tensor:
        lengths = torch.where(prompt, probs.shape[-1], seen)
        return _last_above(_group_mean(probs), lengths, percentile)

    rows = view.per_head(above, last=last)
    ends = torch.cat([view.query_positions.new_zeros(1), view.query_positions[-last:] + 1])
    used = ends[rows]
    if "used" in view.state:
        used = torch.maximum(used, view.state["used"])
    view.state["used"] = used
    return used.masked_fill(used <= view.logical - history, 0)


def _fresh(view: LayerView) -> int:
    """How many of the captured queries came since the last round."""
    return int((view.query_positions >= view.since).sum())


def _group_mean(probs: Tensor) -> Tensor:
    return probs[0] if len(probs) == 1 else probs.mean(dim=0)


def _probabilities(probs: Tensor, seen: Tensor) -> Tensor:
    return _group_mean(probs).to(torch.float16)


def _bits(probs: Tensor, seen: Tensor) -> Tensor:
    return (_group_mean(probs) >= (_ROUNDING / seen)[:, None]).view(torch.uint8)


def _last_above(mean: Tensor, lengths: Tensor, percentile: float) -> Tensor:
    """(W, n), (W,) -> (n,) int64: 1 + the last row that gave a slot more than the row's percentile, 0 if none did.

    lengths: slots that count in each row; the others hold zeros. The percentile lies between two neighbours
    in rank, so being above it is being above the lower one.
    """
    ranks = (percentile * (lengths - 1).double()).round(decimals=6).long() + mean.shape[1] - lengths
    bars = mean.sort(dim=1).values.gather(1, ranks[:, None])
    rows = torch.arange(1, len(mean) + 1, device=mean.device)
    return ((mean > bars) * rows[:, None]).amax(dim=0)
