"""`python -m evals.distance`: ask, print the table, write results/distance.json and .md."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from evals import items
from evals.distance.asked import at_distance
from evals.distance.plan import DISTANCES, LENGTHS, POLICIES, DistanceCell, DistanceLayout
from evals.distance.report import DistanceAnswers, text
from evals.endpoint import Endpoint, Refused
from evals.scorers import score
from evals.server import serving
from kvserve.startup.guard import UnsupportedError
from kvserve.summary.file import BESIDE, about
from measuring.command import attempted, defaults
from measuring.results import write
from measuring.server import ServerDied
from models import MINI

AT_ONCE = 12  # items


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m evals.distance", description=__doc__)
    made.add_argument("--model", type=Path, default=MINI, help="folder with summary parameters (default: embedded)")
    made.add_argument("--items", type=int, default=200, metavar="N", help="in each cell (default: %(default)s)")
    made.add_argument(
        "--lengths", type=int, nargs="+", choices=LENGTHS, default=LENGTHS, metavar="N", help="of 512, ..."
    )
    made.add_argument("--dtype", default="float32", help="of the server (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("results/distance.json"), help="(default: %(default)s)")
    return made


async def ask(url: str, args: argparse.Namespace, layout: DistanceLayout) -> DistanceAnswers:
    """Every item of every cell; a run that is interrupted begins anew: it takes minutes."""
    endpoint, found, gate = Endpoint(url, str(args.model)), DistanceAnswers(), asyncio.Semaphore(AT_ONCE)
    endpoint.model = await endpoint.served()
    world, places = items.world(), [(length, distance) for length in args.lengths for distance in DISTANCES[length]]

    async def one(length: int, distance: int, number: int, bar: "tqdm[None]") -> None:
        """All policies on one item, one after the other: most find its prompt in the prefix cache then."""
        async with gate:
            sized = await endpoint.sized(at_distance(world, length, distance, number, args.seed))
            for name, policy in POLICIES.items():
                said = await endpoint.answer(sized, policy(layout, sized.sizes, number))
                right = score("niah", said.text, sized.item.answer)
                found.add(DistanceCell(name, length, distance), right, said.kept, said.bytes)
                bar.update()

    try:
        with tqdm(total=len(places) * len(POLICIES) * args.items, unit="answer", mininterval=1) as bar:
            for length, distance in places:
                async with asyncio.TaskGroup() as group:
                    for number in range(args.items):
                        group.create_task(one(length, distance, number, bar))
    finally:
        await endpoint.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        layout = DistanceLayout(about(args.model / BESIDE))
    except UnsupportedError as error:
        print(f"--model {args.model} has no summary parameters: {error}", file=sys.stderr)
        return 2
    defaults({"HF_HUB_OFFLINE": "1"})
    flags = ["--dtype", args.dtype, "--kv-groups", str(len(layout.about.layers))]

    def run() -> None:
        with serving(["mini" if args.model == MINI else str(args.model), *flags]) as url:
            found = asyncio.run(ask(url, args, layout))
        written = text(found, layout, args)
        write(args.out, found.record(layout, args), written)
        print(written)

    return attempted("evals.distance", run, (ServerDied, Refused), None)


if __name__ == "__main__":
    sys.exit(main())
