"""What the bench promises."""

from collections.abc import Iterable

from bench.sizes import BenchSizes
from measuring.promise import Promise
from measuring.repetitions import Repetitions

WIDE = {"kvserve, none": 1.02, "kvserve, all": 1.10}


def promises(book: Repetitions, sizes: BenchSizes) -> list[Promise]:
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
    for name in book.names("h"):
        if (limit := WIDE.get(name)) is not None:
            found.append(_of(book, "h", name, "ratio", f"step of {name} / step of stock vLLM", limit, at_most=True))
    return list(_measured(found))


def _of(
    book: Repetitions, part: str, name: str, quantity: str, what: str, limit: float, *, at_most: bool
) -> Promise | None:
    value = book.median(part, name, quantity)
    return None if value is None else Promise(part, what, value, limit, at_most)


def _measured(found: Iterable[Promise | None]) -> Iterable[Promise]:
    return (promise for promise in found if promise is not None)
