"""Retrieval by distance, with summaries, with the whole cache, and with the window alone, on held-out seeds and prose.

The distance of an item is that from its fact to the end of the text before the question, in tokens. An answer counts as
exact if each of its tokens is the first choice given everything before it, ``<eos>`` included in chat form.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from models import MINI
from models.summary.file import BESIDE, load
from models.summary.network import RowLayout, SummaryRows, read
from models.tasks.generators import niah
from models.tasks.scene import FORMS, World, tokens_of
from models.tasks.tokens import encode
from models.training.evaluate import wilson
from models.training.network import Network
from models.training.reading import read_network

Item = tuple[list[int], list[bool]]  # token ids, and which of them are the answer's
MOST_TRIES = 200  # scenes that are made for one that is wanted


@dataclass(frozen=True)
class SummaryCell:
    """What was measured in one mode for one prompt length and range of distances; Wilson's interval at 95 %."""

    mode: str  # full, summaries, window
    form: str
    tokens: int
    nearest: int
    furthest: int
    items: int
    exact: float
    low: float
    high: float
    token_accuracy: float


def ranges(tokens: int, window: int) -> list[tuple[int, int]]:
    """Distances inside the window, then doubling: ``(nearest, furthest)``."""
    found = [(0, window)]
    while found[-1][1] < tokens:
        last = found[-1][1]
        found.append((last + 1, min(tokens, max(2 * last, 4 * window))))
    return found


def items_at(world: World, form: str, tokens: int, nearest: int, furthest: int, count: int) -> list[Item]:
    """Items whose fact lies so far back; the same arguments give the same items."""
    found: list[Item] = []
    for number in range(count * MOST_TRIES):
        scene = niah(Random(f"distance/{form}/{tokens}/{number}"), world, tokens, turns=1)
        distance = len(encode(world.tokenizer, scene.context[scene.context.index(scene.facts[0]) :]))
        if nearest <= distance <= furthest:
            found.append(tokens_of(world.tokenizer, scene.told(form)))
        if len(found) == count:
            break
    return found


@torch.inference_mode()
def right(network: Network, own: SummaryRows | None, layout: RowLayout, item: Item) -> list[bool]:
    """For each answer token, whether it is the first choice."""
    ids, answers = item
    at = torch.tensor([i - 1 for i, is_answer in enumerate(answers) if is_answer])
    padded = torch.tensor([ids[:-1] + [0] * (-(len(ids) - 1) % layout.unit)])
    hidden = read(network, own, padded, layout if own else None, torch.float32).hidden
    return (network.predict(hidden, at).argmax(-1) == torch.tensor(ids)[at + 1]).tolist()


def measure(
    network: Network, own: SummaryRows, layout: RowLayout, world: World, lengths: list[int], count: int, form: str
):
    """All cells, the modes of one range side by side."""
    modes = {"full": (None, layout), "summaries": (own, layout), "window": (own, replace(layout, summaries=False))}
    places = [(n, *each) for n in lengths for each in ranges(n, layout.unit)]
    for tokens, nearest, furthest in tqdm(places, unit="range"):
        items = items_at(world, form, tokens, nearest, furthest, count)
        for mode, (parameters, how) in modes.items():
            results = [right(network, parameters, how, item) for item in items]
            if results:
                yield _cell(mode, form, tokens, nearest, furthest, results)


def _cell(mode: str, form: str, tokens: int, nearest: int, furthest: int, results: list[list[bool]]) -> SummaryCell:
    exact, flat = sum(map(all, results)), [each for result in results for each in result]
    low, high = wilson(exact, len(results))
    share = exact / len(results)
    return SummaryCell(mode, form, tokens, nearest, furthest, len(results), share, low, high, sum(flat) / len(flat))


def markdown(cells: list[SummaryCell]) -> str:
    """One row for each length and range, one column for each mode: exact in %, its interval, share of right tokens."""
    rows: dict[tuple, dict[str, SummaryCell]] = defaultdict(dict)
    for cell in cells:
        rows[cell.form, cell.tokens, cell.nearest, cell.furthest, cell.items][cell.mode] = cell
    head = "form prompt distance items full summaries window".split()
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for (form, tokens, nearest, furthest, items), row in rows.items():
        figures = " | ".join(_figure(row[mode]) for mode in ("full", "summaries", "window"))
        lines.append(f"| {form} | {tokens} | {nearest}–{furthest} | {items} | {figures} |")
    return "\n".join(lines)


def _figure(cell: SummaryCell) -> str:
    bounds = f"{100 * cell.low:.1f}–{100 * cell.high:.1f}"
    return f"{100 * cell.exact:.1f} ({bounds}; tokens {100 * cell.token_accuracy:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.summary.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=MINI, help="model folder with the family's tokenizer")
    parser.add_argument("--summaries", type=Path, help=f"summary file (default: FOLDER/{BESIDE})")
    parser.add_argument("--items", type=int, default=200, help="items in each range")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024], help="prompt and answer, in tokens")
    parser.add_argument("--form", choices=FORMS, default="completion")
    parser.add_argument("--write", type=Path, metavar="FILE", help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = read_network(args.folder, torch.float32)
    tensors, layout, mix = load(args.summaries or args.folder / BESIDE, args.folder, network.shape)
    if mix != 1:
        parser.error(f"the file's mix is {mix}; the training network has 1")
    own = SummaryRows(network)
    with torch.no_grad():
        own.take(tensors)
    world = World(Tokenizer.from_file(str(args.folder / "tokenizer.json")), held_out=True)
    cells = list(measure(network, own, layout, world, args.lengths, args.items, args.form))
    print(markdown(cells))
    if args.write:
        args.write.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")


if __name__ == "__main__":
    main()
