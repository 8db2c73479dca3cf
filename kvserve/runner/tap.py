"""What one layer's attention calls before and after it has run, also from within a CUDA graph.

A graph replays kernels, not Python. While one is captured, the tap has the queries copied to a place of its own, so
that every replay does that too; who watches is shown them after the step. That serves those who need the queries of a
step and not its layers as they run (`Observer.late`); a step that others watch is not replayed as a whole.
"""

import torch
from torch import Tensor

from kvserve.engine.compactor import Compactor
from kvserve.evidence.observer import Layer


class LayerTap:
    """Of one layer. staged: (tokens, Hq, D), where captured steps leave their queries; None if none is captured."""

    def __init__(self, kv: Compactor, layer: Layer, staged: Tensor | None = None) -> None:
        self._kv, self._layer, self._staged = kv, layer, staged
        self._shown = False  # whether Python has run in this step

    def before(self, query: Tensor) -> None:
        if self._staged is not None:
            if capturing():
                self._staged[: len(query)].copy_(query)
                return
            self._shown = True
        for observer in self._kv.active:
            observer.before(self._layer, query)

    def after(self, query: Tensor, output: Tensor) -> None:
        if self._staged is not None and capturing():
            return
        for observer in self._kv.active:
            observer.after(self._layer, query, output)

    def catch_up(self) -> None:
        """The step has run: if it was replayed, show its queries now."""
        if self._staged is None:
            return
        shown, self._shown = self._shown, False
        if not shown:
            for observer in self._kv.active:
                observer.before(self._layer, self._staged)


def capturing() -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
