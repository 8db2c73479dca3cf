"""Quality over bytes kept, one panel per table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.cells import FULL, ORACLE, RANDOM
from evals.markdown import answered, by_kind, policies_of
from evals.report import Record
from evals.scorers import measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {ORACLE: ("black", "--"), RANDOM: ("0.45", ":")}
MARKERS = "osD^v<>PX*hp8d"
COLUMNS = 2


def draw(made: Record, out: Path) -> None:
    """Write the panels beside `out` as PNG."""
    figure(made).savefig(out.with_suffix(".png"), dpi=110)


def figure(made: Record) -> "Figure":
    """A panel for each kind of items."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    kinds = by_kind(answered(made["cells"]))
    names = list(dict.fromkeys(policy for cells in kinds.values() for policy in sorted(policies_of(cells))))
    colours = {name: colormaps["tab20"](i % 20) for i, name in enumerate(names)}
    rows = max(1, -(-len(kinds) // COLUMNS))
    figure = Figure(figsize=(13, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for panel, (kind, cells) in zip(axes.flat, kinds.items(), strict=False):
        _panel(panel, kind, cells, names, colours)
    for panel in axes.flat[len(kinds) :]:
        panel.axis("off")
    handles = {
        label: line for panel in axes.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def _panel(panel: Any, kind: Any, cells: list[Record], names: list[str], colours: dict[str, Any]) -> None:
    task, form, length, protocol = kind
    for policy in policies_of(cells):
        mine = sorted(
            (cell for cell in cells if cell["policy"] == policy), key=lambda cell: (cell["bytes"], cell["budget"])
        )
        found = [(cell["bytes"], cell["score"]) for cell in mine]
        mean = [100 * score["mean"] for _, score in found]
        if policy == FULL:
            panel.axhline(mean[0], color="black", linewidth=1, label=FULL)
            continue
        colour, line = STYLES.get(policy, (colours[policy], "-"))
        errors = [[_span(score, "low") for _, score in found], [_span(score, "high") for _, score in found]]
        marker = MARKERS[names.index(policy) % len(MARKERS)]
        style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.3}
        panel.errorbar([100 * held for held, _ in found], mean, errors, elinewidth=0.5, label=policy, **style)
    panel.set_title(f"{task}, {length} tokens, {form}, {protocol}", fontsize=10)
    panel.set_xlabel("bytes held at the end, % of uncompressed")
    panel.set_ylabel(f"{measure(task)}, %")
    panel.set_ylim(-3, 103)
    panel.grid(alpha=0.25)


def _span(score: Record, end: str) -> float:
    """From the mean to an end of its interval, in %; rounding may put the end on the wrong side of it."""
    return max(0.0, 100 * (score["mean"] - score["low"] if end == "low" else score["high"] - score["mean"]))
