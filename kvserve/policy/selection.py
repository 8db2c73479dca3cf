"""What a policy hands back, checked against the contract before anything is moved."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvserve.policy import Merged


class Room(NamedTuple):
    """What one layer of a compaction has: KV heads, slots held, slots that stay, and the sizes of a head."""

    heads: int
    held: int
    keep: int
    key_size: int
    value_size: int


def checked(choice: Any, room: Room) -> Merged:
    """A selection as the engine uses it. Raises ValueError that says what is wrong with it."""
    merged = choice if isinstance(choice, Merged) else Merged(choice, None, None, 0)
    _check_slots(merged.slots, room)
    first = 0 if merged.first is None else _number("first", merged.first, room.keep)
    for name, made, size in (("keys", merged.keys, room.key_size), ("values", merged.values, room.value_size)):
        if made is not None:
            _check_made(name, made, (room.heads, _made_of(made, room.keep - first, merged.first is None), size))
    _number("merged", merged.merged, math.inf)
    return merged


def shared(shares: Any, layers: int, keep: int) -> list[float]:
    """Tokens of each layer as `own_shares_of` divided them. Raises ValueError that says what is wrong with it."""
    found = [float(share) for share in shares]
    if len(found) != layers:
        raise ValueError(f"own_shares_of gave {len(found)} numbers; allowed: one for each of the {layers} layers")
    if not all(math.isfinite(share) and share >= 0 for share in found):
        raise ValueError(f"own_shares_of gave {found}; allowed: finite numbers >= 0")
    if sum(found) > (keep + 1) * layers:
        raise ValueError(f"own_shares_of gave {sum(found) / layers} tokens per layer (mean); allowed: {keep}")
    return found


def _check_slots(slots: Any, room: Room) -> None:
    if not isinstance(slots, Tensor):
        raise ValueError(f"the selection is a {type(slots).__name__}; allowed: a Tensor or Merged")
    if slots.dtype != torch.int64 or tuple(slots.shape) != (room.heads, room.keep):
        raise ValueError(
            f"the selection is {slots.dtype} of shape {tuple(slots.shape)}; allowed: torch.int64 of shape "
            f"{(room.heads, room.keep)} (KV heads, slots that stay)"
        )
    fine = (slots[:, 1:] > slots[:, :-1]).all() & (slots >= 0).all() & (slots < room.held).all()
    if not bool(fine):  # one look at the device
        raise ValueError(f"the selection is not ascending, or not within the {room.held} slots held")


def _check_made(name: str, made: Any, shape: Sequence[int]) -> None:
    if not isinstance(made, Tensor) or not made.is_floating_point() or tuple(made.shape) != tuple(shape):
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(f"the merged {name} are {got}; allowed: floating point of shape {tuple(shape)}")
    if not bool(torch.isfinite(made).all()):
        raise ValueError(f"the merged {name} are not all finite")


def _made_of(made: Any, most: int, whole: bool) -> int:
    """Entries that merged contents stand for: all, or as many as they are from `first` on."""
    given = made.shape[1] if isinstance(made, Tensor) and made.dim() == 3 else most
    return most if whole else min(given, most)


def _number(name: str, value: Any, most: float) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}; allowed: 0 to {most}")
    return int(value)
