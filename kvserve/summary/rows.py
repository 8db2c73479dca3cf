"""Summary rows on their way through the layers, and what is known of the summaries of one request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvserve.cache.records import Location
from kvserve.evidence.observer import Layer
from kvserve.evidence.side_pass import LayerwisePass
from kvserve.summary.attention import Window


@dataclass
class Made:
    """What is known of one request; its summaries that are not in its cache yet: of chunks `first`, `first` + 1, ..."""

    window: Window
    lost: int  # entries that a summary layer loses with each chunk: all but one, or all if no summaries are seen
    first: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # as stored, (H, m, D) each

    @property
    def summarised(self) -> bool:
        return self.lost < self.window.chunk

    @property
    def last(self) -> int:
        """The chunk after those that have been made."""
        return self.first + next((keys.shape[1] for keys, _ in self.layers.values()), 0)

    def forget(self, before: int) -> None:
        """Those of chunks below `before` are in the cache, or will not be asked for."""
        skip = before - self.first
        if skip > 0:
            self.layers = {i: (keys[:, skip:], values[:, skip:]) for i, (keys, values) in self.layers.items()}
            self.first = before

    def add(self, layer: int, fresh: Sequence[Tensor]) -> None:
        """Keys and values (H, r, D) of the next r chunks in one layer."""
        if layer in self.layers:
            fresh = [torch.cat(pair, dim=1) for pair in zip(self.layers[layer], fresh, strict=True)]
        self.layers[layer] = (fresh[0], fresh[1])


class Due(NamedTuple):
    """Chunks [first, last) of a request, whose text is in its cache."""

    made: Made
    where: Mapping[int, Location]  # by group
    first: int
    last: int


class Rows:
    """The rows of all chunks that are due: the summary token, at the position of each chunk's last token."""

    def __init__(self, chunk: int, due: list[Due], embedding: Tensor) -> None:
        self._due, self._chunk = due, chunk
        last = [chunk * (index + 1) - 1 for one in due for index in range(one.first, one.last)]
        positions = torch.tensor(last, device=embedding.device)
        self._pass = LayerwisePass(embedding.expand(len(last), -1), positions)

    def __bool__(self) -> bool:
        return bool(self._due)

    def go(self, block: Any, attention: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Through one decoder layer: see `LayerwisePass.go`."""
        self._pass.go(block, attention)

    def text(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Keys and values (r, H, C, D) float32 of each row's chunk."""
        parts: list[list[Tensor]] = [[], []]
        for _, where, first, last in self._due:
            held = where[layer.group]
            at = torch.arange(first * self._chunk, last * self._chunk, device=held.blocks.device)
            slots = (at - (held.logical - held.slots)).expand(layer.num_kv_heads, -1)
            for part, tokens in zip(parts, layer.cache, strict=True):
                found = tokens.decode(tokens.pick(held.blocks, slots))
                part.append(found.unflatten(1, (-1, self._chunk)).transpose(0, 1))
        return torch.cat(parts[0]), torch.cat(parts[1])

    def keep(self, layer: Layer, made: tuple[Tensor, Tensor]) -> None:
        """Keys and values (r, H, D) of the rows in one layer, as stored."""
        start = 0
        for due in self._due:
            end = start + due.last - due.first
            due.made.add(layer.index, [part[start:end].transpose(0, 1) for part in made])
            start = end
