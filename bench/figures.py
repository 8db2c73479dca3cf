"""The promises, and whether what was measured keeps them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from bench.book import Book
from bench.sizes import Sizes


class Figure(NamedTuple):
    """A ratio and its limit."""

    part: str
    what: str
    value: float
    limit: float
    at_most: bool

    @property
    def kept(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def record(self) -> dict[str, Any]:
        return {**self._asdict(), "kept": self.kept}

    def line(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "kept" if self.kept else "**missed**"
        return f"- ({self.part}) {self.what}: {self.value:.3g} ({sign} {self.limit:g}: {verdict})"


def figures(book: Book, sizes: Sizes) -> list[Figure]:
    """Those that the measurements so far allow."""
    first, last = sizes.contexts[0], sizes.contexts[-1]
    found = [_of(book, "a", "kvserve", "ratio", "step of kvserve / step of stock vLLM", 1.02, at_most=True)]
    for name in book.names("b"):
        if name.endswith(f"@ {last}") and not name.startswith("full"):
            what = f"{name.partition(' ')[0]}, step at {last} / step at {first}"
            found.append(_of(book, "b", name, "ratio", what, 1.15, at_most=True))
    for name in book.names("c"):
        found.append(_of(book, "c", name, "of_allowed", f"{name}, at once / allowed by blocks", 0.9, at_most=False))
        if name != "full":
            found.append(_of(book, "c", name, "speed_up", f"{name}, total time of full / of this", 2.0, at_most=False))
    for name in book.names("d"):
        found.append(_of(book, "d", name, "share", f"{name}, share of decoding", 0.05, at_most=True))
    for name in book.names("f"):
        what = f"{name}, CPU time of a prefill / with streaming"
        found.append(_of(book, "f", name, "prefill_cpu_ratio", what, 1.2, at_most=True))
    return list(_measured(found))


def _of(book: Book, part: str, name: str, quantity: str, what: str, limit: float, *, at_most: bool) -> Figure | None:
    value = book.median(part, name, quantity)
    return None if value is None else Figure(part, what, value, limit, at_most)


def _measured(found: Iterable[Figure | None]) -> Iterable[Figure]:
    return (figure for figure in found if figure is not None)
