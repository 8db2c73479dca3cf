"""Several API processes count as one: each board below stands for the board of one of them."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvserve.policy.errors import PolicyError
from kvserve.stats import EngineTotals, Running, SharedPrefix
from server.metrics.board import Board
from server.metrics.metrics import export
from server.metrics.shared import FOLDER, Shared

COUNT = 3


def _config(rank: int, count: int = COUNT) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(served_model_name="m"),
        parallel_config=SimpleNamespace(_api_process_count=count, _api_process_rank=rank),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    return folder


@pytest.fixture
def boards(folder: Path) -> list[Board]:
    boards = [Board() for _ in range(COUNT)]
    for rank, board in enumerate(boards):
        board.serves(_config(rank), True)
    return boards


def _snapshot(requests: int, pool: int = 1000) -> dict[str, Any]:
    """As an engine dumps it now."""
    running = Running(
        id="1a2b3c4d",
        policy="knorm",
        budget=0.5,
        stage="decode",
        logical_tokens=10,
        kept_tokens=5.0,
        resident_bytes=1,
        full_bytes=2,
    )
    totals = EngineTotals(pool_bytes=pool, running=[running], requests_running=1)
    totals.of("knorm").requests = requests
    return json.loads(totals.dump())


def _holding(*ids: str) -> dict[str, Any]:
    """An engine with these prefixes."""
    prefixes = [
        SharedPrefix(
            id=id,
            policy="keydiff",
            budget=0.25,
            logical_tokens=800,
            kept_tokens=200.0,
            bytes=10,
            hits=3,
            age_seconds=5.0,
            idle_seconds=1.0,
        )
        for id in ids
    ]
    return json.loads(EngineTotals(prefixes=prefixes, prefix_bytes=10 * len(ids)).dump())


def _requests(board: Board) -> int:
    return board.view().totals.policies["knorm"].requests


def test_before_the_first_snapshot_all_is_zero(boards: list[Board]) -> None:
    for board in boards:
        totals, reported, rejections = board.view()
        assert (totals, reported, set(rejections.values())) == (EngineTotals(), False, {0})


def test_whichever_process_an_engine_reports_to_all_show_it(boards: list[Board]) -> None:
    boards[1].post(0, _snapshot(3))
    assert [_requests(board) for board in boards] == [3] * COUNT
    boards[2].post(0, _snapshot(5))
    boards[0].post(1, _snapshot(100))
    assert [_requests(board) for board in boards] == [105] * COUNT
    for board in boards:
        totals = board.view().totals
        assert (totals.pool_bytes, totals.requests_running, len(totals.running)) == (2000, 2, 2)


def test_an_older_snapshot_never_replaces_a_newer(boards: list[Board]) -> None:
    older, newer = _snapshot(3), _snapshot(4)
    assert newer["at"] > older["at"]
    boards[0].post(0, newer)
    boards[1].post(0, older)  # that process was slower
    assert [_requests(board) for board in boards] == [4] * COUNT


def test_what_one_process_has_dropped_is_gone_for_all_until_the_engine_speaks_again(boards: list[Board]) -> None:
    def held(board: Board) -> tuple[list[str], int]:
        totals = board.view().totals
        return [prefix["id"] for prefix in totals.prefixes], totals.prefix_bytes

    for index in (0, 1):
        boards[index].post(index, _holding("a", "b"))
    boards[2].forget("a")
    assert [held(board) for board in boards] == [(["b", "b"], 20)] * COUNT
    boards[1].post(0, _holding("a"))
    assert [held(board) for board in boards] == [(["a", "b"], 20)] * COUNT


def test_prefixes_age_while_no_engine_speaks(boards: list[Board], monkeypatch: pytest.MonkeyPatch) -> None:
    boards[0].post(0, _holding("a"))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    for board in boards:
        (prefix,) = board.view().totals.prefixes
        assert (round(prefix["age_seconds"]), round(prefix["idle_seconds"])) == (65, 61)


def test_rejections_of_all_processes_add_up(boards: list[Board]) -> None:
    for board in boards:
        for _ in range(2):
            board.begin()
            board.reject(PolicyError("x", reason="too_long"))
    boards[0].begin()
    boards[0].reject(PolicyError("x", reason="unsupported"))
    for board in boards:
        rejections = board.view().rejections
        assert (rejections["too_long"], rejections["unsupported"], rejections["bad_parameter"]) == (2 * COUNT, 1, 0)


def test_every_process_answers_a_scrape_alike(boards: list[Board]) -> None:
    boards[1].post(0, _snapshot(3))
    boards[2].reject(PolicyError("x", reason="too_long"))
    answers = set()
    for board in boards:
        registry = CollectorRegistry()
        export(board, registry)
        answers.add(generate_latest(registry))
    assert len(answers) == 1
    assert b'kvserve_requests_total{model_name="m",policy="knorm"} 3.0' in answers.pop()


def test_a_file_that_cannot_be_read_changes_nothing(boards: list[Board], folder: Path) -> None:
    boards[1].post(0, _snapshot(3))
    assert _requests(boards[0]) == 3
    (file,) = folder.glob("kvserve-*-1.json")
    file.write_text(file.read_text()[:50])
    assert _requests(boards[0]) == 3
    file.unlink()
    assert _requests(boards[0]) == 3
    assert not boards[2].view().reported


def test_the_end_of_the_folder_ends_nothing(
    boards: list[Board], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boards[1].post(0, _snapshot(3))
    assert _requests(boards[0]) == 3
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    for requests in (4, 5):
        boards[1].post(0, _snapshot(requests))
    assert (_requests(boards[0]), _requests(boards[1])) == (3, 5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_reading_while_the_others_write(boards: list[Board]) -> None:
    """No half of a file is ever seen, and what is seen never goes back."""
    stop, seen = threading.Event(), []

    def write() -> None:
        requests = 0
        while not stop.is_set():
            requests += 1
            boards[1 + requests % 2].post(requests % 2, _snapshot(requests))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(seen) < 500:
            view = boards[0].view()
            if view.reported:
                seen.append(view.totals.policies["knorm"].requests)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen) and seen[0] < seen[-1]


def test_files_of_other_servers_in_the_same_folder_are_not_read(folder: Path) -> None:
    earlier = Shared(folder, "earlier-run", 0, COUNT)
    earlier.publish({"engines": {"0": _snapshot(9)}, "rejections": {"too_long": 9}})
    board = Board()
    board.serves(_config(1), True)
    assert not board.view().reported
    assert json.loads((folder / "kvserve-earlier-run-0.json").read_text())["rejections"] == {"too_long": 9}


def test_a_process_alone_writes_no_files(folder: Path) -> None:
    board = Board()
    board.serves(_config(0, count=1), True)
    board.post(0, _snapshot(3))
    board.reject(PolicyError("x", reason="too_long"))
    assert list(folder.iterdir()) == []
    assert _requests(board) == 3


def test_files_are_none_that_prometheus_reads(boards: list[Board], folder: Path) -> None:
    boards[0].post(0, _snapshot(3))
    assert [file.suffix for file in folder.iterdir()] == [".json"]
