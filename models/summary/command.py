"""`kvserve train-summary` and `kvserve convert-summary`: what a model must know of summary tokens (policy `ksa`)."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from kvserve.startup.guard import UnsupportedError
from models import MINI
from models.summary.adapter import Adapter, Recipe, ResumeError, losses
from models.summary.file import BESIDE, SummaryFileError, hash_of, save
from models.summary.network import RowLayout, kinds_of
from models.summary.rows import Rows, TextError, rows_of
from models.training.network import Network
from models.training.reading import ReadingError, read_network

HELD_OUT_STEP = -1  # its rows are no step's
INTERRUPTED = 130


def train(argv: Sequence[str]) -> int:
    """`kvserve train-summary`. Returns the exit code: 0 written, 1 cannot, 2 wrong usage, 130 interrupted and saved."""
    args = _train_parser().parse_args(argv)
    problem = _usage(args)
    if problem:
        print(f"kvserve train-summary: {problem}", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    try:
        return _train(args)
    except (ReadingError, ResumeError, TextError, ValueError, OSError) as error:
        print(f"kvserve train-summary: {error}", file=sys.stderr)
        return 1


def convert(argv: Sequence[str]) -> int:
    """`kvserve convert-summary`. Returns the exit code: 0 written, 1 cannot, 2 wrong usage."""
    args = _convert_parser().parse_args(argv)
    if args.output.resolve() == args.checkpoint.resolve():
        print("kvserve convert-summary: --output must be another folder than the checkpoint's", file=sys.stderr)
        return 2
    from models.summary.ksa_checkpoint import convert as converted

    try:
        found = converted(args.checkpoint, args.output)
    except (ReadingError, UnsupportedError, SummaryFileError, OSError) as error:
        print(f"kvserve convert-summary: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: chunks of {found.chunk}, a window of {found.window} chunks, layers {_letters(found.kinds)}")
    if found.agreed_tokens is not None:
        print(
            f"note: beyond {found.agreed_tokens:,} tokens prefill and decode of the released code disagree on what a "
            "full layer sees; here it sees all text"
        )
    return 0


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvserve train-summary",
        description="Teach a Qwen3 model summary tokens; its own weights stay as they are. Ctrl-C saves, the same "
        "command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, default=MINI, metavar="MODEL", help="its folder")
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to train on (embedded models generate)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help=f"file to write (default: MODEL/{BESIDE})")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="batches")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="length of a row")
    parser.add_argument("--chunk", type=int, default=8, metavar="N", help="text tokens for each summary")
    parser.add_argument("--window", type=int, default=8, metavar="N", help="chunks that are read as text")
    parser.add_argument(
        "--layers", default="s", metavar="PATTERN", help="s: reads summaries, f: keeps all text; repeated, as in sssf"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    return parser


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvserve convert-summary",
        description="Convert a published KSA checkpoint to a plain Qwen3 folder and its summary file.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with config.json and safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    return parser


def _usage(args: argparse.Namespace) -> str | None:
    least = {"steps": 1, "rows": 1, "chunk": 2, "window": 1, "threads": 1}
    for name, allowed in least.items():
        if getattr(args, name) < allowed:
            return f"--{name} is {getattr(args, name)}; allowed: at least {allowed}"
    unit = args.window * args.chunk
    if args.tokens % unit or args.tokens < 2 * unit:
        return f"--tokens is {args.tokens}; allowed: a multiple of the window's {unit} tokens, at least {2 * unit}"
    if not 0 < args.rate < 1:
        return f"--rate is {args.rate}; allowed: above 0, below 1"
    if not (args.model / "config.json").is_file():
        return f"MODEL is {args.model}; allowed: a folder with a config.json"
    return None


def _train(args: argparse.Namespace) -> int:
    out = args.out or args.model / BESIDE
    network = read_network(args.model)
    if torch.cuda.is_available():
        network = network.cuda()
    layout = RowLayout(kinds_of(args.layers, network.shape.layers), args.window, args.chunk)
    rows, source = rows_of(args.model, args.text, args.rows, args.tokens, args.seed)
    about = {"model": hash_of(args.model), "text": source, "rows": args.rows, "tokens": args.tokens}
    recipe = Recipe(layout, args.steps, args.rate, seed=args.seed)
    run = Adapter(network, recipe, rows, out.with_name(out.name + ".checkpoint"), about)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, run.stop)
    _work(run)
    if not run.done:
        run.save()
        print(f"saved {run.checkpoint} at step {run.step}; the same command goes on")
        return INTERRUPTED
    told = {"text": source, "steps": str(args.steps), "tokens": str(args.steps * args.rows * args.tokens)}
    dtype = network.embedding.weight.dtype
    save(out, run.own.tensors(), args.model, layout, 1.0, dtype, told | {"seed": str(args.seed)})
    run.checkpoint.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size:,} bytes, layers {_letters(layout.kinds)}\n{_verdict(network, run, rows)}")
    return 0


def _work(run: Adapter) -> None:
    smooth: dict[str, float] = {}
    with tqdm(total=run.recipe.steps, initial=run.step, desc="training summaries", unit="step", mininterval=1) as bar:
        while not run.done and not run.stopped:
            for name, loss in run.advance().items():
                smooth[name] = 0.95 * smooth.get(name, loss) + 0.05 * loss
            bar.set_postfix({name: f"{loss:.4f}" for name, loss in smooth.items()}, refresh=False)
            bar.update()


@torch.no_grad()
def _verdict(network: Network, run: Adapter, rows: Rows) -> str:
    """What was gained, on rows that were not trained on: divergence from the whole cache."""
    batch, layout = rows(HELD_OUT_STEP), run.recipe.layout
    without = RowLayout(layout.kinds, layout.window, layout.chunk, summaries=False)
    ours, theirs = (losses(network, run.own, each, batch)["kl"].item() for each in (layout, without))
    return f"nats per token from the whole cache's: {ours:.4f} with summaries, {theirs:.4f} with the window alone"


def _letters(kinds: tuple[str, ...]) -> str:
    return "".join(kind[0] for kind in kinds)
