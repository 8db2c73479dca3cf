"""Panels, all made by the same two functions: a tile with one number, and a graph over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMappingResult,
)

from deploy.dashboards import promql

Made = TypeVar("Made", stat.Panel, timeseries.Panel)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
IDLE = "No traffic"

BYTES, SHARE, SECONDS, REQUESTS = "bytes", "percentunit", "s", "reqps"
EVENTS, TOKENS = "cps", "count:tok/s"  # vLLM's dashboards write token rates like this

Steps = tuple[tuple[str, float | None], ...]
NEUTRAL: Steps = (("blue", None),)
NEAR_FULL: Steps = (("green", None), ("orange", 0.90), ("red", 0.98))  # as vLLM's KV-cache dashboard
COSTLY: Steps = (("green", None), ("orange", 0.05), ("red", 0.10))  # red is where the alert fires
UNWANTED: Steps = (("green", None), ("orange", 0.001), ("red", 1.0))

QUANTILES = {0.5: "light-blue", 0.95: "blue", 0.99: "dark-blue"}


class Query(NamedTuple):
    """A PromQL expression, the name of its series, and their colour where it means something."""

    expr: str
    legend: str = "__auto"
    color: str | None = None


@dataclass(frozen=True)
class Panel:
    """What a graph or a tile shows. `description` says what to make of it."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    steps: Steps = NEUTRAL
    stacked: bool = False
    top: float | None = None

    @property
    def help(self) -> str:
        """The description, and where the numbers come from."""
        found = [name for query in self.queries for name in promql.metrics(query.expr)]
        return f"{self.description}\n\nMetrics: {', '.join(f'`{name}`' for name in dict.fromkeys(found))}"


def tile(panel: Panel) -> stat.Panel:
    """The latest value with a sparkline; coloured if its thresholds pass a judgement."""
    colored = kinds.BigValueColorMode.NONE if panel.steps is NEUTRAL else kinds.BigValueColorMode.VALUE
    latest = common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)
    return (
        _filled(stat.Panel(), panel)
        .color_mode(colored)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .text_mode(kinds.BigValueTextMode.VALUE)
        .reduce_options(latest)
    )


def graph(panel: Panel) -> timeseries.Panel:
    """Lines over time, or stacked areas; thresholds are drawn as dashed lines."""
    made = (
        _filled(timeseries.Panel(), panel)
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(25 if panel.stacked else 10)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    )
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if panel.steps is not NEUTRAL:
        made = made.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED))
    if panel.top is not None:
        made = made.max(panel.top)
    for query in panel.queries:
        if query.color:
            made = made.override_by_name(query.legend, [_fixed(query.color)])
    return made


def latencies(title: str, description: str, histogram: str, scope: str = promql.SCOPE) -> Panel:
    """Quantiles and mean of a histogram of seconds."""
    queries = [
        Query(promql.quantile(share, histogram, scope), f"p{share * 100:.0f}", color)
        for share, color in QUANTILES.items()
    ]
    queries.append(Query(promql.mean(histogram, scope=scope), "mean", "purple"))
    return Panel(title, description, queries, SECONDS)


def _filled(made: Made, panel: Panel) -> Made:
    """What tiles and graphs have in common."""
    steps = [Threshold(color=color, value=value) for color, value in panel.steps]
    made.title(panel.title).description(panel.help).datasource(SOURCE).unit(panel.unit)
    made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    made.no_value(IDLE).mappings([_nan()])
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made.with_target(prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter))
    return made


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST).show_legend(True)
    return legend.placement(kinds.LegendPlacement.BOTTOM).calcs([])


def _fixed(color: str) -> DynamicConfigValue:
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def _nan() -> SpecialValueMap:
    """Quantiles of nothing are NaN."""
    shown = ValueMappingResult(text=IDLE, index=0)
    return SpecialValueMap(DashboardSpecialValueMapOptions(match=SpecialValueMatch.NA_N, result=shown))
