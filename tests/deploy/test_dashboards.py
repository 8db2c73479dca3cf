"""The dashboards as files: generated, complete, and at home among vLLM's own."""

from pathlib import Path
from typing import Any

import pytest

from deploy.dashboards.__main__ import stale
from tests.deploy import boards
from tests.server.test_metrics import CANARY, CONTRACT

VLLM_VARIABLES = ["datasource", "job", "model_name", "instance"]
WIDTH = 24
UNSEEN = {"kvserve_build_info"}

BOARDS = {path.stem: boards.load(path) for path in boards.PATHS}
every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def _base(metric: str) -> str:
    """A histogram's own name."""
    for suffix in ("_bucket", "_sum", "_count"):
        metric = metric.removesuffix(suffix)
    return metric


def _metrics(panel: dict[str, Any]) -> set[str]:
    return {_base(s.metric) for target in panel["targets"] for s in boards.selectors(target["expr"])}


def test_files_are_what_the_generator_writes() -> None:
    assert not stale(), "run `make dashboards`"


def test_stale_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: "edited by hand")
    assert {path.name for path in stale()} == {"compression.json", "policies.json", "rules.yaml"}


def test_uids_and_titles_differ() -> None:
    names = [(board["uid"], board["title"]) for board in BOARDS.values()]
    assert names == [
        ("kvserve-compression", "kvserve / Compression overview"),
        ("kvserve-policies", "kvserve / Policies"),
    ]


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    seen = {metric for board in BOARDS.values() for panel in boards.panels(board) for metric in _metrics(panel)}
    assert (CONTRACT | CANARY).keys() - seen == UNSEEN


@every_board
def test_stands_beside_those_of_vllm(board: dict[str, Any]) -> None:
    assert board["tags"] == ["vllm"]
    assert list(boards.variables(board)) == [*VLLM_VARIABLES, "policy", "filters"]
    (link,) = board["links"]
    assert link["tags"] == ["vllm"] and link["includeVars"] and link["keepTime"]


@every_board
def test_every_panel_explains_itself(board: dict[str, Any]) -> None:
    for panel in boards.panels(board):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for metric in _metrics(panel):
            assert f"`{metric}`" in panel["description"], (panel["title"], metric)


@every_board
def test_every_line_has_a_name(board: dict[str, Any]) -> None:
    for panel in boards.panels(board):
        names = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        assert panel["type"] == "stat" or "__auto" not in names, panel["title"]


@every_board
def test_every_query_keeps_to_the_chosen_servers(board: dict[str, Any]) -> None:
    for panel in boards.panels(board):
        for target in panel["targets"]:
            for selector in boards.selectors(target["expr"]):
                assert selector.labels >= {"job", "instance", "model_name"}, target["expr"]


@every_board
def test_panels_do_not_overlap(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(x + i, y + j) for i in range(w) for j in range(h)}
        assert x + w <= WIDTH and not cells & taken, panel["title"]
        taken |= cells


@every_board
def test_ids_are_unique(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
