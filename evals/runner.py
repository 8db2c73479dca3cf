"""Asking every question of a plan, many at a time."""

import asyncio
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from tqdm import tqdm

from evals import items
from evals.cells import FULL, Cell, Contestant, Kind, Section
from evals.endpoint import Endpoint, Refused, Sized, Tops
from evals.forced import forced
from evals.items import Item
from evals.journal import EvalJournal
from evals.oracle import Oracle
from evals.protocols import Unsuitable, kv_policy
from evals.scorers import score

ITEMS_AT_ONCE = 8  # the more, the more prompts the server's prefix cache must hold


class Runner:
    """One run; what it finds goes into the book."""

    def __init__(
        self,
        sections: Sequence[Section],
        contestants: Sequence[Contestant],
        cards: dict[str, dict[str, Any]],
        endpoint: Endpoint,
        book: EvalJournal,
        count: int,
        seed: int,
        requests_at_once: int,
        oracle: Oracle | None,
        title: str | None = None,
        least: float = 0.0,
    ) -> None:
        """least: score of the full cache, 0 to 1, under which a kind of items says nothing of policies."""
        self._sections, self._endpoint, self._book = sections, endpoint, book
        self._contestants = {each.label: each for each in contestants}
        self._cards = cards
        self._count, self._seed = count, seed
        self._oracle, self._least = oracle, least
        self._looking = asyncio.Lock()
        self._gate = asyncio.Semaphore(requests_at_once)
        self._bar: tqdm[Any] = tqdm(desc=title, unit="answer", smoothing=0.05)

    async def run(self) -> None:
        """Ask all that the book does not have yet."""
        self._bar.reset(
            total=sum(self._size(s, kind, list(self._contestants)) for s in self._sections for kind in s.kinds())
        )
        with self._bar:
            for section in self._sections:
                for kind in section.kinds():
                    await self._kind(section, kind)

    async def _kind(self, section: Section, kind: Kind) -> None:
        """The full cache first where it decides whether the others are asked at all."""
        others = [label for label in self._contestants if label != FULL]
        if not (self._least and section.generated and others):
            return await self._ask(section, kind, list(self._contestants))
        await self._ask(section, kind, [FULL])
        found = [self._book.scores.get(cell) for cell in section.cells(kind, [FULL])]
        known = [fmean(score for score, *_ in scores.values()) for scores in found if scores]
        if min(known, default=1.0) >= self._least:  # a server that refuses `full` says so of the others too
            return await self._ask(section, kind, others)
        self._bar.update(self._size(section, kind, others))

    async def _ask(self, section: Section, kind: Kind, labels: Sequence[str]) -> None:
        """All items of a kind, under the policies with these labels."""
        waiting = items.drawn(items.haystack(kind[0]), *kind, self._count, self._seed)
        async with asyncio.TaskGroup() as group:
            for _ in range(ITEMS_AT_ONCE):
                group.create_task(self._some(section, waiting, labels))

    def _size(self, section: Section, kind: Kind, labels: Sequence[str]) -> int:
        """Answers that these policies give to all items of a kind."""
        return len(list(section.cells(kind, labels))) * self._count * len(section.passes)

    async def _some(self, section: Section, waiting: Iterator[Item], labels: Sequence[str]) -> None:
        """Take items until none is left."""
        for item in waiting:
            cells = list(section.cells((item.task, item.form, item.length), labels))
            asked = [(cell, how) for cell in cells for how in section.passes]
            todo = [(cell, how) for cell, how in asked if not self._book.has(cell, item.number, how)]
            self._bar.update(len(asked) - len(todo))
            if todo:
                await self._item(section, await self._endpoint.sized(item), todo)

    async def _item(self, section: Section, sized: Sized, todo: Sequence[tuple[Cell, bool]]) -> None:
        """All that is to be asked about one item; first what the full cache thinks, to hold others against."""
        full = await self._forced(sized, FULL, section.forced) if any(how for _, how in todo) else None
        if self._oracle is not None and any(self._contestants[cell.policy].name == "oracle" for cell, _ in todo):
            async with self._looking:  # one pass holds the attention of all layers: gigabytes
                await asyncio.to_thread(self._oracle.look, sized)
        async with asyncio.TaskGroup() as group:
            for cell, how in todo:
                group.create_task(self._cell(sized, cell, full if how else None, section.forced))

    async def _cell(self, sized: Sized, cell: Cell, full: Tops | None, top: int) -> None:
        """One answer of one cell: given if `full` says what to hold it against, else generated."""
        item = sized.item
        try:
            policy = self._policy(sized, cell)
            if self._book.has(cell, item.number, full is not None):
                pass  # refused meanwhile
            elif full is not None:
                tops = full if policy == FULL else await self._forced(sized, policy, top)
                self._book.force(cell, item.number, forced(tops, full, sized.answer))
            else:
                async with self._gate:
                    said = await self._endpoint.answer(sized, policy)
                self._book.score(cell, item.number, score(item.task, said.text, item.answer), said.kept, said.bytes)
        except (Refused, Unsuitable) as error:
            self._book.refuse(cell, str(error))
        self._bar.update()

    async def _forced(self, sized: Sized, policy: Any, top: int) -> Tops:
        async with self._gate:
            return await self._endpoint.forced(sized, policy, top)

    def _policy(self, sized: Sized, cell: Cell) -> Any:
        """What to send in a cell. Raises Unsuitable."""
        fields = self._contestants[cell.policy].fields
        if fields["name"] == FULL:
            return FULL
        card = self._cards.get(fields["name"])
        if card is None:
            raise Unsuitable(f"{fields['name']!r} is not installed on this server")
        if card["supported"] is False and len(fields) == 1:
            raise Unsuitable(card["reason"])
        if fields["name"] == "oracle":
            fields = {**fields, "item": Oracle.name(sized.item)}
        known = card["parameters"]["properties"]
        return kv_policy(cell.protocol, fields, known, cell.budget, sized.sizes, sized.item.number)
