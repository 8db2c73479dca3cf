"""The curves: throughput and goodput as the pool shrinks, and the soak over time. PNG, on white."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

Record = dict[str, Any]

LINES = {
    "full": ("#222222", "-"),
    "random": ("#8a8a8a", ":"),
    "streaming": ("#0072b2", "-"),
    "scissorhands": ("#d55e00", "-"),
}
OTHER = ("#009e73", "-")
QUANTITIES = {"tokens_per_s": "tokens/s", "goodput": "goodput, requests/s"}

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw(record: Record, out: Path) -> list[Path]:
    """Write the plots that the record has data for beside `out`; returns their paths."""
    made = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(record):
            made.append(out.with_name(f"{out.stem}-{name}.png"))
            figure.savefig(made[-1], dpi=160)
    return made


def figures(record: Record) -> Iterator[tuple[str, Figure]]:
    """Name and plot."""
    curves = crossover(record["parts"].get("crossover", {}))
    if any(len(points) > 1 for points in curves.values()):
        yield "crossover", _crossover(curves, record)
    if course := record["course"].get("soak"):
        yield "soak", _soak(course)


# -- the crossover ------------------------------------------------------------------------------------

Points = dict[float, dict[str, float]]  # pool share in % -> quantity -> median


def crossover(cells: Record) -> dict[str, Points]:
    """Policy -> its points, from the cases of the scenario."""
    curves: dict[str, Points] = {}
    for case, quantities in cells.items():
        policy, _, share = case.partition(" @ ")
        medians = {name: values["median"] for name, values in quantities.items()}
        curves.setdefault(policy, {})[float(share.removesuffix(" %"))] = medians
    return curves


def _crossover(curves: dict[str, Points], record: Record) -> Figure:
    """A column per budget, a row per quantity; `full` is in all of them."""
    budgets = list(dict.fromkeys(policy.partition(":")[2] for policy in curves if ":" in policy))
    figure = Figure(figsize=(1 + 4.2 * len(budgets), 6), layout="tight")
    grid = figure.subplots(len(QUANTITIES), len(budgets), sharex=True, sharey="row", squeeze=False)
    for row, (quantity, label) in zip(grid, QUANTITIES.items(), strict=True):
        row[0].set_ylabel(label)
        high = 1.06 * max(point[quantity] for points in curves.values() for point in points.values())
        for axes, budget in zip(row, budgets, strict=True):
            shown = {name: points for name, points in curves.items() if name.partition(":")[2] in ("", budget)}
            _panel(axes, shown, quantity, high)
    for axes, budget in zip(grid[0], budgets, strict=True):
        axes.set_title(f"budget {budget}")
    load = record["sizes"]["crossover"]
    for axes in grid[-1]:
        axes.set_xlabel(f"pool, % of what {load['clients']} uncompressed requests need")
    lengths = f"{load['prompt']} + {load['output']} tokens"
    figure.suptitle(f"As the KV pool shrinks: {load['clients']} clients, {lengths}", x=0.01, ha="left")
    return figure


def _panel(axes: Axes, curves: dict[str, Points], quantity: str, high: float) -> None:
    ends = {}
    for policy, points in curves.items():
        name = policy.partition(":")[0]
        colour, line = LINES.get(name, OTHER)
        shares = sorted(points, reverse=True)
        values = [points[share][quantity] for share in shares]
        axes.plot(shares, values, color=colour, linestyle=line, marker="o", markersize=4, linewidth=2)
        ends[name] = (values[-1], colour)
    shares = sorted({share for points in curves.values() for share in points})
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(shares[-1] * 1.07, shares[0] * 0.55)  # shrinking, with room for the names of the lines
    axes.set_ylim(0, high or 1)
    heights = apart([y for y, _ in ends.values()], least=0.08 * high)
    for (name, (_, colour)), height in zip(ends.items(), heights, strict=True):
        axes.text(shares[0] * 0.96, max(height, 0.04 * high), name, color=colour, va="center", weight="bold")


def apart(heights: Sequence[float], least: float) -> list[float]:
    """The same heights in the same order, moved as little as needed for any two to be `least` apart."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    groups: list[list[float]] = []  # of neighbours that touch: what their places would be, each less its rank's share
    for rank, n in enumerate(order):
        groups.append([heights[n] - rank * least])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [fmean(group) for group in groups for _ in group]
    moved = {n: place + rank * least for rank, (n, place) in enumerate(zip(order, places, strict=True))}
    return [moved[n] for n in range(len(heights))]


# -- the soak -----------------------------------------------------------------------------------------


def _soak(course: Sequence[Record]) -> Figure:
    """What the server's processes and the running requests hold, from the beginning to the end."""
    figure = Figure(figsize=(7, 4.6), layout="tight")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = [sample["seconds"] for sample in course]
    for key, name, colour in (("engine_rss", "engine", "#0072b2"), ("api_rss", "HTTP side", "#d55e00")):
        values = [sample[key] / 2**20 for sample in course]
        above.plot(seconds, values, color=colour, linewidth=2)
        above.annotate(name, (seconds[-1], values[-1]), xytext=(6, 0), textcoords="offset points", color=colour)
    above.set_ylabel("resident memory, MiB")
    above.set_ylim(bottom=0)
    below.fill_between(seconds, [s["resident_bytes"] / 2**20 for s in course], color="#0072b2", alpha=0.35, step="post")
    below.set_ylim(bottom=0)
    below.set_ylabel("KV blocks held, MiB")
    below.set_xlabel("seconds")
    above.set_title("Soak: memory of the server, and of its requests")
    return figure
