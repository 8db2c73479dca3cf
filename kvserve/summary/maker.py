"""Summary tokens (Kwai Summary Attention, arXiv:2604.24432): what the model itself makes of a chunk of text.

A summary sees the text of its own chunk and itself, in every layer, and nothing else. So it needs no row of the running
sequence: all summaries that are due are computed in a side pass over the text that is cached. Two occasions:

- a chunk leaves the window while text is generated: before the step, for all requests at once (`prepare`), whereupon
  the policy puts the summaries in the place of the chunk's text;
- chunks leave the window within a step that reads many tokens: layer by layer, as attention runs, since their text
  is only just being read (`after`). The same call does the attention of that text over again: no query may
  see text beyond its own window, which is there still, nor miss the summaries, which are not there yet.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvserve.cache.records import Location, Record, Span
from kvserve.evidence.observer import Layer, Observer, Upcoming
from kvserve.policy import LayerView
from kvserve.policy.types import Summaries
from kvserve.startup.guard import UnsupportedError
from kvserve.summary.attention import Sight, Window, attention
from kvserve.summary.file import load_for
from kvserve.summary.layer import SummaryLayer, layers_of
from kvserve.summary.rows import Due, Made, Rows


class SummaryMaker(Observer):
    """Computes summaries on this worker, and the attention of text that must see some of them."""

    def __init__(self, about: Summaries, embedding: Tensor, layers: Sequence[SummaryLayer]) -> None:
        self._chunk, self._kinds = about.chunk, about.layers
        self._embedding, self._layers = embedding, layers
        self._taken = 0
        self._readings: list[Span] = []  # text of the running step whose attention is done here
        self._rows = Rows(about.chunk, [], embedding)

    @classmethod
    def of(cls, runner: Any, attached: Sequence[tuple[Layer, Any]], head_offset: int) -> "SummaryMaker | None":
        """What computes the served model's summary tokens. Raises UnsupportedError.

        None if it was taught none, or if their rows would have to go through several pipeline stages.
        """
        file = load_for(runner.vllm_config)
        if file is None or runner.vllm_config.parallel_config.pipeline_parallel_size > 1:
            return None
        layers = [layer for layer, _ in attached]
        if len(layers) != len(file.about.layers):
            raise UnsupportedError("summary tokens: models with layers of sliding-window attention are not supported")
        names = [module.layer_name.rpartition(".self_attn")[0] for _, module in attached]
        blocks = [runner.model.get_submodule(name) for name in names]
        tensors = {name: tensor.to(runner.dtype) for name, tensor in file.tensors().items()}
        made = layers_of(tensors, file.mix, blocks, layers, head_offset, runner.device)
        return cls(file.about, tensors["embedding"].to(runner.device), made)

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, record: Record, first: int) -> None:
        asks = record.asks
        if asks.summaries:
            self._taken += 1
            record.observed[self] = Made(Window(self._chunk, asks.text_window), self._chunk - asks.summarised)

    def end(self, record: Record) -> None:
        self._taken -= 1

    def __len__(self) -> int:
        return self._taken

    # -- a compaction --------------------------------------------------------------------------------

    def prepare(self, rounds: Sequence[Upcoming]) -> None:
        """Make what these compactions ask for and is not made yet, in one pass."""
        due = []
        for each in rounds:
            try:
                due.append(self._due(each))
            except ValueError as error:  # said when the policy is asked what stays
                each.record.error = error
        rows = self._missing(due)
        if rows:
            for layer in self._layers:
                self._pass(layer, rows)

    def _due(self, asked: Upcoming) -> Due:
        """What a compaction asks for: summaries for all the text that it lets go. ValueError for parts of chunks."""
        made: Made = asked.record.observed[self]
        chunks = 0
        for keep in asked.keep:
            chunks, rest = divmod(asked.logical - keep, made.lost)
            if rest or chunks * self._chunk > asked.logical:
                raise ValueError(
                    f"due gave {keep} of {asked.logical}; allowed: {made.lost} less for each whole chunk of text"
                )
        return Due(made, asked.where, _gone(asked.where, made.lost), chunks)

    def _missing(self, due: Sequence[Due]) -> Rows:
        missing = []
        for one in due:
            one.made.forget(one.first)
            if one.made.summarised and one.made.last < one.last:
                missing.append(one._replace(first=one.made.last))
        return Rows(self._chunk, missing, self._embedding)

    def show(self, view: LayerView, record: Record, layer: Layer, where: Location) -> None:
        view.summaries = partial(self._made_of, record, layer)

    def _made_of(self, record: Record, layer: Layer, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H, last - first, D) float32 of these chunks' summaries, which must have been made."""
        made: Made = record.observed[self]
        keys, values = (part[:, first - made.first : last - made.first] for part in made.layers[layer.index])
        if keys.shape[1] != last - first:
            raise RuntimeError(f"summaries of chunks {first} to {last} of {record.req_id} were not made")
        return layer.cache.keys.decode(keys), layer.cache.values.decode(values)

    def _pass(self, layer: SummaryLayer, rows: Rows) -> None:
        """Take the rows through one layer and keep their keys and values."""

        def attended(positions: Tensor, hidden_states: Tensor) -> Tensor:
            q, k, v = layer.project(hidden_states, positions)
            cache = layer.layer.cache
            kept = cache.keys.encode(k.float()), cache.values.encode(v.float())
            rows.keep(layer.layer, kept)
            own = cache.keys.decode(kept[0]), cache.values.decode(kept[1])
            return layer.out(layer.attend(q, *own, *rows.text(layer.layer)), hidden_states.dtype)

        rows.go(layer.block, attended)

    # -- a step --------------------------------------------------------------------------------------

    def begin_step(self, spans: Sequence[Span]) -> bool:
        if not spans and not self._readings:
            return False
        self._readings, due = [span for span in spans if self._needs(span)], []
        for span in self._readings:
            made: Made = span.record.observed[self]
            due.append(Due(made, span.after, _gone(span.after, made.lost), made.window.gone(span.end - 1)))
        self._rows = self._missing(due)
        return bool(self._readings)

    def _needs(self, span: Span) -> bool:
        """Whether some of these tokens must not see what the cache holds once they are in it."""
        made: Made = span.record.observed[self]
        cached = max(span.record.offset.values(), default=0) // made.lost
        return made.window.gone(span.end - 1) > cached

    def after(self, layer: Layer, query: Tensor, output: Tensor) -> None:
        """The rows of our readings are written anew."""
        if self._rows:
            self._pass(self._layers[layer.index], self._rows)
        if self._kinds[layer.index] == "full":
            return
        for span in self._readings:
            rows = slice(span.row, span.row + span.count)
            seen = self._attention(layer, span, query[rows])
            output[rows] = seen.reshape(output[rows].shape).to(output.dtype)

    def _attention(self, layer: Layer, span: Span, query: Tensor) -> Tensor:
        """(count, Hq, D): attention on the text in each query's window and the summaries before it."""
        where, made = span.after[layer.group], span.record.observed[self]
        gone = _gone(span.after, made.lost)
        cached, sights = gone * made.summarised, []
        for i, tokens in enumerate(layer.cache):
            held = tokens.decode(tokens.read(where.blocks, where.slots))
            fresh = [tokens.decode(made.layers[layer.index][i])] if layer.index in made.layers else []
            sights.append(Sight(torch.cat([held[:, :cached], *fresh], dim=1), held[:, cached:]))
        keys, values = sights
        return attention(query, span.position, keys, values, gone, made.window, layer.softmax.scale)


def _gone(where: Mapping[int, Location], lost: int) -> int:
    """Chunks that are not cached as text any more, in the layers that summarise."""
    return max(each.logical - each.slots for each in where.values()) // lost
