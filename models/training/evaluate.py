"""Exact match of the models by task, form and prompt length, at full cache, on held-out seeds and prose.

One forward pass over prompt and answer per item: the answer counts as exact if each of its tokens, ``<eos>`` included
in chat form, is the most likely one. That is when greedy decoding would produce it, up to rounding.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from models import MINI
from models.tasks.generators import TASKS
from models.tasks.scene import FORMS, World, tokens_of
from models.training.family import FAMILY, Member

LENGTHS = (512, 1024, 2048, 4096)
CELLS = (
    *((task, form) for task in ("niah", "niah_free", "vt", "quote", "chain") for form in FORMS),
    ("mqar", "completion"),
    ("copy", "completion"),
)


@dataclass(frozen=True)
class TaskCell:
    """What was measured for one task, form and length; the interval is Wilson's at 95 %."""

    task: str
    form: str
    tokens: int
    items: int
    exact: float
    low: float
    high: float
    token_accuracy: float


def wilson(successes: int, items: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the share that ``successes`` of ``items`` trials estimate."""
    share, spread = successes / items, z * z / items
    centre = (share + spread / 2) / (1 + spread)
    radius = z / (1 + spread) * sqrt(share * (1 - share) / items + spread / (4 * items))
    return max(0.0, centre - radius), min(1.0, centre + radius)


def load(folder: Path | str = MINI):
    """The tokenizer and the model of ``folder``, by stock transformers, in the stored bfloat16 weights' float32 values.

    Processors without bfloat16 arithmetic are several times faster in float32.
    """
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def right_tokens(model, ids: list[int], answers: list[bool]) -> list[bool]:
    """For each answer token, whether it is the model's first choice given everything before it."""
    at = [i for i, is_answer in enumerate(answers) if is_answer]
    hidden = model.model(input_ids=torch.tensor([ids[:-1]])).last_hidden_state[0]
    chosen = model.lm_head(hidden[[i - 1 for i in at]]).argmax(-1).tolist()
    return [choice == ids[i] for choice, i in zip(chosen, at, strict=True)]


def measure(model, world: World, task: str, form: str, tokens: int, items: int) -> TaskCell:
    results = []
    for item in range(items):
        rng = Random(f"evaluate/{task}/{form}/{tokens}/{item}")
        scene = TASKS[task](rng, world, tokens, turns=1)
        results.append(right_tokens(model, *tokens_of(world.tokenizer, scene.told(form))))
    exact = sum(all(result) for result in results)
    flat = [right for result in results for right in result]
    return TaskCell(task, form, tokens, items, exact / items, *wilson(exact, items), sum(flat) / len(flat))


def markdown(cells: list[TaskCell]) -> str:
    """One row per task and form, one column per length: exact match in %, its interval, share of right tokens."""
    lengths = sorted({cell.tokens for cell in cells})
    head = " | ".join(f"{n} tokens" for n in lengths)
    lines = [f"| task | form | {head} |", "| --- | --- |" + " --- |" * len(lengths)]
    for task, form in dict.fromkeys((cell.task, cell.form) for cell in cells):
        row = {cell.tokens: _figure(cell) for cell in cells if (cell.task, cell.form) == (task, form)}
        lines.append(f"| {task} | {form} | " + " | ".join(row.get(n, "") for n in lengths) + " |")
    return "\n".join(lines)


def _figure(cell: TaskCell) -> str:
    bounds = f"{100 * cell.low:.1f}–{100 * cell.high:.1f}"
    return f"{100 * cell.exact:.1f} ({bounds}; tokens {100 * cell.token_accuracy:.1f})"


def merged(path: Path, cells: list[TaskCell]) -> list[TaskCell]:
    """The figures in ``path``, if there is one, with ``cells`` in place of those of equal task, form and length."""
    known = [TaskCell(**cell) for cell in json.loads(path.read_text())] if path.exists() else []
    found = {(cell.task, cell.form, cell.tokens): cell for cell in known + cells}
    order = {cell: place for place, cell in enumerate(CELLS)}
    kept = [cell for cell in found.values() if (cell.task, cell.form) in order]
    return sorted(kept, key=lambda cell: (order[cell.task, cell.form], cell.tokens))


def write(path: Path, cells: list[TaskCell]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    os.replace(new, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=_member, help=f"of {', '.join(FAMILY)} (default: all)")
    parser.add_argument("--folder", type=Path, help="another folder with a model of the family's tokenizer")
    parser.add_argument("--items", type=int, default=200, help="items in each cell")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="prompt and answer together, in tokens")
    parser.add_argument("--tasks", nargs="+", choices=sorted({task for task, _ in CELLS}), help="default: all")
    parser.add_argument("--write", action="store_true", help="put the figures into the model's accuracy.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folders = [args.folder] if args.folder else [member.folder for member in args.models or FAMILY.values()]
    wanted = [(t, f, n) for n in args.lengths for t, f in CELLS if not args.tasks or t in args.tasks]
    for folder in folders:
        evaluate(folder, wanted, args.items, folder / "accuracy.json" if args.write else None)


def _member(name: str) -> Member:
    if name not in FAMILY:
        raise argparse.ArgumentTypeError(f"model must be one of {', '.join(FAMILY)}, got {name!r}")
    return FAMILY[name]


def evaluate(folder: Path, wanted: list[tuple[str, str, int]], items: int, path: Path | None) -> None:
    """Measure and print; each figure is in ``path`` as soon as it is known, so that an interruption loses one cell."""
    tokenizer, model = load(folder)
    world, cells = World(tokenizer, held_out=True), []
    for cell in tqdm(wanted, desc=folder.name, unit="cell"):
        cells.append(measure(model, world, *cell, items))
        if path:
            write(path, merged(path, cells))
    print(markdown(merged(path, cells) if path else cells))


if __name__ == "__main__":
    main()
