"""What both dashboards share: variables, links and layout, the same as those of vLLM's own dashboards.

vLLM's: examples/observability/dashboards/grafana in its repository. Same names and one tag mean that
Grafana lists ours beside them and that the choice of server and time goes along.
"""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as kinds

from deploy.dashboards import promql
from deploy.dashboards.panels import SOURCE, Panel, graph, tile

TAG = "vllm"
WIDTH = 24
TILE_HEIGHT, GRAPH_HEIGHT = 4, 8
REQUESTS = "kvserve_requests_total"


def framed(
    uid: str, title: str, description: str, tiles: Sequence[Panel], rows: Mapping[str, Sequence[Panel]]
) -> kinds.Dashboard:
    """A line of tiles, then rows of two graphs each."""
    made = dashboard.Dashboard(f"kvserve / {title}").uid(uid).description(description).tags([TAG]).editable()
    made.refresh("30s").time("now-1h", "now").tooltip(kinds.DashboardCursorSync.CROSSHAIR).link(_link())
    made.version(1)
    for variable in _variables():
        made.with_variable(variable)
    for panel in tiles:
        made.with_panel(tile(panel).span(WIDTH // len(tiles)).height(TILE_HEIGHT))
    for name, panels in rows.items():
        made.with_row(dashboard.Row(name))
        for panel in panels:
            made.with_panel(graph(panel).span(WIDTH // 2).height(GRAPH_HEIGHT))
    return _numbered(made.build())


def _numbered(built: kinds.Dashboard) -> kinds.Dashboard:
    """Ids of their own, so that links to a panel stay good as long as the order does."""
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return built


def _link() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("vLLM dashboards").type(kinds.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.icon("external link").include_vars(True).keep_time(True)


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.AdHocVariable]:
    """vLLM's (`engine` is missing because kvserve's series add the engines of a server up), and the policy."""
    job, model = 'job=~"$job"', 'job=~"$job", model_name=~"$model_name"'
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _choice("job", "Job", promql.RUNNING, ""),
        _choice("model_name", "Model", promql.RUNNING, job),
        _choice("instance", "Instance", promql.RUNNING, model),
        _choice("policy", "Policy", REQUESTS, promql.SCOPE),
        dashboard.AdHocVariable("filters").label("Filters").datasource(SOURCE),
    ]


def _choice(name: str, label: str, metric: str, scope: str) -> dashboard.QueryVariable:
    """Any number of the values that a label has; all of them to begin with."""
    query = f"label_values({metric}{f'{{{scope}}}' * bool(scope)}, {name})"
    everything = kinds.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE).current(everything)
    variable.multi(True).include_all(True).sort(kinds.VariableSort.ALPHABETICAL_ASC)
    return variable.refresh(kinds.VariableRefresh.ON_TIME_RANGE_CHANGED)
