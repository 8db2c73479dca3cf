"""Exact match of the shipped model by task, form and prompt length, at full cache, on held-out seeds and prose.

One forward pass over prompt and answer per item: the answer counts as exact if each of its tokens, ``<eos>`` included
in chat form, is the most likely one. That is when greedy decoding would produce it, up to rounding.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from models import MINI
from models.scene import FORMS, World, tokens_of
from models.tasks import TASKS

LENGTHS = (512, 1024, 1500, 2048)
CELLS = (
    *((task, form) for task in ("niah", "niah_free", "vt", "quote", "chain") for form in FORMS),
    ("mqar", "completion"),
    ("copy", "completion"),
)


@dataclass(frozen=True)
class Cell:
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


def measure(model, world: World, task: str, form: str, tokens: int, items: int) -> Cell:
    results = []
    for item in range(items):
        rng = Random(f"evaluate/{task}/{form}/{tokens}/{item}")
        scene = TASKS[task](rng, world, tokens, turns=1)
        results.append(right_tokens(model, *tokens_of(world.tokenizer, scene.told(form))))
    exact = sum(all(result) for result in results)
    flat = [right for result in results for right in result]
    return Cell(task, form, tokens, items, exact / items, *wilson(exact, items), sum(flat) / len(flat))


def markdown(cells: list[Cell]) -> str:
    """One row per task and form, one column per length: exact match in %, its interval, share of right tokens."""
    lengths = sorted({cell.tokens for cell in cells})
    head = " | ".join(f"{n} tokens" for n in lengths)
    lines = [f"| task | form | {head} |", "| --- | --- |" + " --- |" * len(lengths)]
    for task, form in dict.fromkeys((cell.task, cell.form) for cell in cells):
        row = {cell.tokens: _figure(cell) for cell in cells if (cell.task, cell.form) == (task, form)}
        lines.append(f"| {task} | {form} | " + " | ".join(row.get(n, "") for n in lengths) + " |")
    return "\n".join(lines)


def _figure(cell: Cell) -> str:
    bounds = f"{100 * cell.low:.1f}–{100 * cell.high:.1f}"
    return f"{100 * cell.exact:.1f} ({bounds}; tokens {100 * cell.token_accuracy:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MINI, help="model folder (default: models/mini)")
    parser.add_argument("--items", type=int, default=200, help="items in each cell")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="prompt and answer together, in tokens")
    parser.add_argument("--tasks", nargs="+", choices=sorted({task for task, _ in CELLS}), help="default: all")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = load(args.model)
    world = World(tokenizer, held_out=True)
    wanted = [(t, f, n) for t, f in CELLS for n in args.lengths if not args.tasks or t in args.tasks]
    cells = [measure(model, world, *cell, args.items) for cell in tqdm(wanted, unit="cell")]
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    print(markdown(cells))


if __name__ == "__main__":
    main()
