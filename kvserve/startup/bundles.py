"""How many layer groups a server gets if nobody says: as few as the policies need, since each takes its part of a step.

A policy that gives layers budgets of their own gets the mean of a bundle; two bundles, early and late layers, are the
fewest that can differ. Models with summary tokens need their two kinds of layers apart.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

from vllm.v1.kv_cache_interface import KVCacheSpec

from kvserve.startup.guard import UnsupportedError

FEW = (2, 3)  # of which the first that divides the layers: vLLM pads groups of unequal size
MOST = 4  # groups that are made unasked: one took about 35 us of a step (2 cores, 4 layers, one request)


class Bundles(NamedTuple):
    """A number of groups, and why this one; the reason is for people."""

    groups: int
    why: str


def chosen(
    asked: int | None,
    ours: Sequence[KVCacheSpec],
    others: int,
    kinds: Sequence[str],
    config: Any,
    counts: Sequence[int] = (),
) -> Bundles:
    """ours: specs of the compressible layers; others: how many more layers hold a cache; kinds: see `bundled`.

    counts: compressible layers of each pipeline stage, if there are several.
    """
    if asked is not None:
        return Bundles(asked, "as --kv-groups says")
    if (why := _obstacle(ours, others, config)) is not None:
        return Bundles(1, why)
    if len(set(kinds)) > 1:
        apart = len(ours) // gcd(*(kinds.count(kind) for kind in set(kinds)))
        if apart <= MOST:
            return Bundles(apart, f"as few as keep {' and '.join(sorted(set(kinds)))} layers apart")
    for groups in FEW:
        if not any(count % groups for count in counts or (len(ours),)):
            return Bundles(groups, "for policies whose budgets differ by layer")
    layers = " and ".join(map(str, counts or (len(ours),)))
    return Bundles(1, f"{layers} layers make no {' or '.join(map(str, FEW))} bundles of equal size")


def bundled(counts: Sequence[int], groups: int, kinds: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """The layers of each of `groups` groups, by their indices in the whole model; every stage has its part of each.

    counts: compressible layers of each pipeline stage. kinds: of the layers, if the model knows several; those of one
    kind are bundled before those of the next. Raises ValueError if the layers cannot be bundled evenly: vLLM would pad
    groups of unequal size.
    """
    if any(count % groups for count in counts):
        stages = f" on each of {len(counts)} pipeline stages" if len(counts) > 1 else ""
        layers = ", ".join(map(str, counts))
        raise ValueError(
            f"--kv-groups is {groups}, which does not divide the {layers} compressible layers of this model{stages}"
        )
    bundles: list[list[int]] = [[] for _ in range(groups)]
    first = 0
    for count in counts:
        layers_here, size = list(range(first, first + count)), count // groups
        if kinds and size > 1:
            layers_here.sort(key=lambda layer: kinds[layer])
        for i, layer in enumerate(layers_here):
            bundles[i // size].append(layer)
        first += count
    return [tuple(bundle) for bundle in bundles]


def fit_a_draft_model(groups: int, ours: int, drafting: int) -> None:
    """Raise UnsupportedError if vLLM would spread the layers of a draft model over groups, which it then refuses.

    It makes groups of equal size, as large as the smallest kind has layers.
    """
    if groups and ours // groups < drafting:
        fitting = [str(n) for n in range(1, ours + 1) if ours % n == 0 and ours // n >= drafting]
        allowed = f"allowed: {', '.join(fitting)}" if fitting else "the model has fewer layers than that"
        raise UnsupportedError(
            f"a draft model keeps its {drafting} layers in one group, and --kv-groups is {groups}, which makes groups "
            f"of {ours // groups} layers; {allowed}"
        )


def _obstacle(ours: Sequence[KVCacheSpec], others: int, config: Any) -> str | None:
    """Why the layers cannot be bundled, or would not be as the user means it."""
    if not ours:
        return "no layer can be compressed"
    if others:
        return f"{others} other layers hold a cache of another kind, which vLLM groups with these"
    if any(spec != ours[0] for spec in ours):
        return "the layers' caches differ in shape"
    if config.scheduler_config.disable_hybrid_kv_cache_manager:
        return "as --disable-hybrid-kv-cache-manager says"
    if config.cache_config.num_gpu_blocks_override is not None:
        return "--num-gpu-blocks-override counts blocks of all layers"
    return None
