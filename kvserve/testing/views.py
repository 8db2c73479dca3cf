"""Layer views made from tensors, as the engine would make them after it has read a prompt."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvserve.policy import Evidence, LayerView, Policy, QuerySums, Rope, Softmax
from kvserve.policy.evidence import KINDS, Queries, find
from kvserve.policy.requirements import Asks


def layer_view(
    keys: Any, values: Any = None, queries: Any = None, *, policy: Policy | None = None, **fields: Any
) -> LayerView:
    """One layer of one request.

    keys, values: (H, n, D), after RoPE, tensors or nested lists; without values, reading them is an error.
    queries: (W, H * G, D), after RoPE, oldest first; those of the last W tokens. Attention mass, moments and
    calibration are worked out from them; they stand for those of a repetition of the prompt, too.
    policy: leave out the evidence that this policy does not read.
    fields: any other field of `LayerView`, in the place of what stands here, for example `positions` or `state`.
    """
    keys = torch.as_tensor(keys, dtype=torch.float32)
    contents = {"keys": keys, "values": None if values is None else torch.as_tensor(values, dtype=torch.float32)}
    positions = torch.as_tensor(fields.pop("positions", torch.arange(keys.shape[1])), device=keys.device)
    positions = positions.expand(keys.shape[0], -1)
    logical = fields.pop("logical", int(positions.max()) + 1)
    view = LayerView(
        layer=fields.pop("layer", 0),
        num_layers=fields.pop("num_layers", 1),
        logical=logical,
        since=fields.pop("since", 0),
        positions=positions,
        load=fields.pop("load", lambda which: _content(contents, which)),
        softmax=fields.pop("softmax", Softmax(keys.shape[2] ** -0.5)),
        prompt=fields.pop("prompt", logical),
        evidence=_declared(policy),
        rope=fields.pop("rope", Rope(1e4 ** (-torch.arange(keys.shape[2] // 2).double() * 2 / keys.shape[2]))),
    )
    if queries is not None:
        at = fields.pop("query_positions", torch.arange(logical - len(queries), logical))
        _add_evidence(view, torch.as_tensor(queries, dtype=torch.float32, device=keys.device), at, policy)
    for name, value in fields.items():
        setattr(view, name, value)
    return view


class RandomLayer(NamedTuple):
    """A layer's tensors, of which a test may change some. H KV heads, n slots, W queries, G query heads a KV head."""

    keys: Tensor  # (H, n, D)
    values: Tensor  # (H, n, D)
    queries: Tensor  # (W, H * G, D)

    def view(self, policy: Policy | None = None, **fields: Any) -> LayerView:
        """Layer 1 of 4, as `policy` would see it."""
        return layer_view(*self, policy=policy, **{"layer": 1, "num_layers": 4, **fields})


def random_layer(
    seed: int = 0, *, heads: int = 2, group: int = 2, slots: int = 700, width: int = 16, queries: int = 512
) -> RandomLayer:
    """Normally distributed keys, values and queries, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads, slots, width), (heads, slots, width), (queries, heads * group, width)
    return RandomLayer(*(torch.randn(size, generator=generator) for size in sizes))


def calibration(queries: Tensor, rope: Rope) -> dict[str, Tensor]:
    """What `kvserve calibrate` would find in a layer with these queries before RoPE, (W, Hq, D), and no more than that.

    The shares of the layers are made up: this layer keeps 0.9 of the mean.
    """
    bands, budgets = rope.bands(queries), torch.tensor([0.1, 0.5, 0.9], device=queries.device)
    found = {"q_mean": bands.mean(0), "q_abs": bands.abs().mean(0)}
    return {**found, "budgets": budgets, "keep_share": budgets * 0.9}


def _content(contents: dict[str, Tensor | None], which: str) -> Tensor:
    found = contents[which]
    if found is None:
        raise ValueError(f"this view has no {which}; give them to layer_view")
    return found


def _declared(policy: Policy | None) -> tuple[Evidence, ...]:
    """What `policy` may read of a view; without one, all there is."""
    if policy is not None:
        return Asks.of(policy).evidence
    return tuple(Queries(1) if kind is Queries else kind() for kind in KINDS)


def _add_evidence(view: LayerView, queries: Tensor, at: Any, policy: Policy | None) -> None:
    """Add what the policy reads of the queries: the last ones, and what is summed up over all of them."""
    wanted = {one.name for one in view.evidence}
    view.evidence, declared = _declared(None), view.evidence
    view.queries, view.query_positions = queries, torch.as_tensor(at, device=queries.device)
    before = view.rope.undo(queries, view.query_positions)
    if wanted & {"mass", "repeated"}:
        view.mass = view.per_head(lambda probs, _: probs.sum(dim=1).T)
        view.repeated = view.per_head(lambda probs, _: probs.amax(dim=(0, 1)))
    if "moments" in wanted:
        view.moments = QuerySums(len(before), before.sum(0), torch.einsum("whd,whe->hde", before, before))
    if "calibration" in wanted:
        view.calibration = calibration(before, view.rope)
    if "output_weight" in wanted:
        view.output_weight = partial(output_weight, view.num_heads, queries)
    view.evidence = declared
    if policy is not None:
        _leave_queries(view, find(Queries, declared))


def output_weight(heads: int, queries: Tensor) -> Tensor:
    """(H, G, D, 24): a projection of what attention puts out, the same for the same sizes."""
    sizes = heads, queries.shape[1] // heads, queries.shape[2], 24
    return torch.randn(sizes, generator=torch.Generator().manual_seed(1)).to(queries.device)


def _leave_queries(view: LayerView, declared: Queries | None) -> None:
    """Show only the last ones, as many as the engine captures for the policy."""
    last = declared.last if declared else 0
    view.queries, view.query_positions = (
        view.queries[-last:] if last else None,
        view.query_positions[-last:] if last else None,
    )
