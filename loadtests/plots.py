"""The curves: throughput and goodput as the pool shrinks, and the soak over time. PNG and SVG, on white."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Record = dict[str, Any]

COLOURS = {"full": "#222222", "streaming": "#0072b2", "random": "#999999", "scissorhands": "#d55e00"}
OTHER = "#009e73"
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
    "svg.fonttype": "none",
    "svg.hashsalt": "loadtests",
}


def draw(record: Record, out: Path) -> list[Path]:
    """Write the plots that the record has data for beside `out`; returns their paths."""
    made = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(record):
            for kind in ("png", "svg"):
                path = out.with_name(f"{out.stem}-{name}.{kind}")
                figure.savefig(path, dpi=160, metadata={"Date": None} if kind == "svg" else None)
                made.append(path)
    return made


def _figures(record: Record) -> Iterator[tuple[str, Figure]]:
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
        for axes, budget in zip(row, budgets, strict=True):
            shown = {name: points for name, points in curves.items() if name.partition(":")[2] in ("", budget)}
            _lines(axes, shown, quantity)
            axes.set_title(f"budget {budget}" if quantity == "tokens_per_s" else "")
    load = record["sizes"]["crossover"]
    for axes in grid[-1]:
        axes.set_xlabel(f"pool, % of what {load['clients']} uncompressed requests need")
    lengths = f"{load['prompt']} + {load['output']} tokens"
    figure.suptitle(f"As the KV pool shrinks: {load['clients']} clients, {lengths}", x=0.01, ha="left")
    return figure


def _lines(axes: Axes, curves: dict[str, Points], quantity: str) -> None:
    ends = {}
    for policy, points in curves.items():
        shares = sorted(points, reverse=True)
        values = [points[share][quantity] for share in shares]
        name = policy.partition(":")[0]
        axes.plot(shares, values, color=_colour(policy), marker="o", markersize=4, linewidth=2, label=name)
        ends[name] = (shares[-1], values[-1], _colour(policy))
    shares = sorted({share for points in curves.values() for share in points})
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.set_xlim(max(shares) * 1.04, min(shares) - 0.38 * (max(shares) - min(shares)))  # shrinking, and room for names
    axes.set_ylim(bottom=0)
    _name(axes, ends)


def _name(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Names beside the ends of their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    heights = apart([y for _, y, _ in ends.values()], (high - low) * 0.075)
    for (name, (x, y, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name, (x, y), xytext=(x - 2, height), textcoords="data", color=colour, va="center", ha="left", weight="bold"
        )


def apart(heights: Sequence[float], least: float) -> list[float]:
    """The same heights, moved so that any two are at least so far from each other."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + least)
    shift = sum(p - h for p, h in zip(placed, heights, strict=True)) / max(1, len(placed))
    return [p - shift for p in placed]


def _colour(policy: str) -> str:
    return COLOURS.get(policy.partition(":")[0], OTHER)


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
    below.set_ylabel("KV blocks held, MiB")
    below.set_xlabel("seconds")
    above.set_title("Soak: memory of the server, and of its requests")
    return figure
