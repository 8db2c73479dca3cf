"""Both sides answer the same items."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from evals import items
from evals.beside.journal import Key, SidesJournal
from evals.beside.pairs import SAME, Pair, cells, kept, key
from evals.beside.partner import Pool
from evals.cells import FULL
from evals.endpoint import Endpoint, Sized
from evals.protocols import kv_policy
from evals.scorers import score

OURS, THEIRS, CHOSEN, WHOLE = "kvserve", "kvpress", "chosen", "whole"
AT_ONCE = 4  # items
Settings = dict[str, Any]


class Asking:
    """One run over all items; what is said goes into the ledger."""

    def __init__(self, settings: Settings, endpoint: Endpoint, partner: Pool, ledger: SidesJournal) -> None:
        self._settings, self._endpoint, self._partner, self._ledger = settings, endpoint, partner, ledger
        self._bar: tqdm[Any] = tqdm(unit="item", smoothing=0.05)
        self._known: dict[str, Any] = {}

    async def run(self) -> None:
        """Ask all that the ledger does not have yet."""
        cards = await self._endpoint.policies()
        self._known = {name: card["parameters"]["properties"] for name, card in cards.items()}
        tasks, count = self._settings["tasks"], self._settings["items"]
        self._bar.reset(total=len(tasks) * count)
        with self._bar:
            for task in tasks:
                length, seed = self._settings["length"], self._settings["seed"]
                waiting = items.drawn(items.haystack(task), task, items.form_of(task), length, count, seed)
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(self._some(waiting))

    async def _some(self, waiting: Iterator[items.Item]) -> None:
        """Take items until none is left."""
        for item in waiting:
            sides = {OURS: self._ours, THEIRS: self._theirs}
            if item.number < self._settings["looked_into"]:
                sides |= {CHOSEN: self._chosen, WHOLE: self._whole}
            keys = [
                (item.task, protocol, item.number, side) for protocol in self._settings["protocols"] for side in sides
            ]
            todo = [each for each in keys if each not in self._ledger.entries]
            if todo:
                sized = await self._endpoint.sized(item)
                async with asyncio.TaskGroup() as group:
                    for each in todo:
                        group.create_task(self._side(sides[each[3]], sized, each))
            self._bar.update()

    async def _side(self, side: Any, sized: Sized, each: Key) -> None:
        self._ledger.answered(each, await side(sized, each[1]))

    async def _ours(self, sized: Sized, protocol: str) -> list[Any]:
        """What kvserve says: run, budget, text, right, whether as many tokens stayed as were to."""
        runs: list[tuple[str, float, Any]] = [(key({"name": FULL}), 1.0, FULL)]
        for fields, budget in _unlike([(pair.ours, budget) for pair, budget in self._cells(sized)]):
            keep = kept(budget, acted(sized, protocol))
            known, number = self._known[fields["name"]], sized.item.number
            policy = kv_policy(protocol, fields, known, keep, sized.sizes, number)
            runs.append((key(fields), budget, policy))
        said = await asyncio.gather(*(self._endpoint.answer(sized, policy) for _, _, policy in runs))
        return [
            [run, budget, one.text, _right(one.text, sized), stayed(one.kept, budget, sized, protocol)]
            for (run, budget, _), one in zip(runs, said, strict=True)
        ]

    async def _theirs(self, sized: Sized, protocol: str) -> list[Any]:
        """What kvpress says, likewise."""
        runs, act = self._runs(sized, protocol), acted(sized, protocol)
        asked = [(theirs, keep, sized.item.number) for theirs, _, keep in runs]
        said = await self._partner.ask("answers", ids=sized.prompt, act=act, new=sized.room, runs=asked)
        return [
            [_name(theirs), budget, text, _right(text, sized), abs(left - keep) <= 1]
            for (theirs, budget, keep), (text, left) in zip(runs, said, strict=True)
        ]

    async def _chosen(self, sized: Sized, protocol: str) -> list[Any]:
        """Tokens that each side's code keeps of the same tensors: pair, budget, per layer (ours, theirs, both)."""
        same = [cell for cell in self._cells(sized) if cell[0].kind == SAME and not cell[0].draws]
        act = acted(sized, protocol)
        asked = [(pair.ours, pair.theirs, kept(budget, act)) for pair, budget in same]
        found = await self._partner.ask("keeps", ids=sized.prompt, act=act, pairs=asked)
        return [[pair.label, budget, layers] for (pair, budget), layers in zip(same, found, strict=True)]

    async def _whole(self, sized: Sized, protocol: str) -> list[Any]:
        """What kvpress' pipeline says from beginning to end: run, budget, text. It has no such thing as `inside`."""
        runs, act = self._runs(sized, protocol), acted(sized, protocol)
        if protocol != "after":
            return []
        asked = [(theirs, keep, sized.item.number) for theirs, _, keep in runs]
        said = await self._partner.ask("whole", ids=sized.prompt, act=act, new=sized.room, runs=asked)
        return [[_name(theirs), budget, text] for (theirs, budget, _), text in zip(runs, said, strict=True)]

    def _runs(self, sized: Sized, protocol: str) -> list[tuple[Settings | None, float, int]]:
        """Presses, budgets and tokens kept; no press first."""
        act = acted(sized, protocol)
        presses = _unlike([(pair.theirs, budget) for pair, budget in self._cells(sized)])
        return [(None, 1.0, act), *((theirs, budget, kept(budget, act)) for theirs, budget in presses)]

    def _cells(self, sized: Sized) -> list[tuple[Pair, float]]:
        return cells(sized.item.task == self._settings["tasks"][0], self._settings["budgets"])


def acted(sized: Sized, protocol: str) -> int:
    """Tokens that have been read when a policy acts."""
    return sized.context if protocol == "after" else len(sized.prompt)


def stayed(share: float, budget: float, sized: Sized, protocol: str) -> bool:
    """Whether the share that a request kept of all tokens seen is what its budget says, to a token.

    How many were seen depends on when the answer ended.
    """
    act = acted(sized, protocol)
    gone, prompt = act - kept(budget, act), len(sized.prompt)
    return any(abs((1 - share) * seen - gone) <= 1 for seen in range(prompt, prompt + sized.room + 1))


def _unlike(runs: Sequence[tuple[Settings, float]]) -> list[tuple[Settings, float]]:
    """Each run once."""
    return list({(key(each), budget): (each, budget) for each, budget in runs}.values())


def _name(theirs: Settings | None) -> str:
    return key(theirs or {"press": "none"})


def _right(text: str, sized: Sized) -> float:
    return score(sized.item.task, text, sized.item.answer)
