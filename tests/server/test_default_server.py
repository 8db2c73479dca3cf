"""`kvserve serve mini`: every policy of the list answers in its short form; the start-up line says why."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from kvserve.policy import registry
from tests.server.running import ServerUnderTest, serving

pytest.importorskip("vllm")

PROMPT = list(range(10, 810))
BUDGET = 0.25
COMPRESSING = sorted(name for name, cls in registry.installed().items() if cls.compresses)
LEAST_OF_KSA = 0.25 + 0.75 / 8  # the embedded model's full layer keeps all, the others one entry of eight


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[ServerUnderTest]:
    with serving(log, ["kvserve", "serve", "mini"], {"VLLM_LOGGING_LEVEL": "INFO"}, as_users_do=True) as running:
        yield running


@pytest.mark.parametrize("name", COMPRESSING)
def test_the_short_form_answers(server: ServerUnderTest, name: str) -> None:
    usage = server.complete(PROMPT, f"{name}:{BUDGET}").usage.kv_cache
    share = usage["kept_tokens"] / usage["logical_tokens"]
    assert (usage["policy"], usage["budget"]) == (name, BUDGET)
    assert "granularity" not in usage  # each of its four layers has block tables of its own
    if name == "triattention":
        assert usage["kept_tokens"] >= len(PROMPT)  # it protects the prompt
    elif name == "ksa":
        assert LEAST_OF_KSA <= share < LEAST_OF_KSA + 0.02
    elif name == "scissorhands":
        assert BUDGET / 2 - 0.02 < share < BUDGET + 0.03  # it drops half of its budget at a time
    else:
        assert abs(share - BUDGET) < 0.03, usage


def test_a_larger_budget_of_ksa_is_met(server: ServerUnderTest) -> None:
    usage = server.complete(PROMPT, "ksa:0.6", max_tokens=2).usage.kv_cache
    assert usage["kept_tokens"] / len(PROMPT) == pytest.approx(0.6, abs=0.01)


def test_nothing_hides_in_the_list(server: ServerUnderTest) -> None:
    cards = server.http.get("/v1/kv/policies").json()["data"]
    assert [card["name"] for card in cards if not card["supported"]] == []


def test_two_ways_of_saying_the_window_are_one_too_many(server: ServerUnderTest) -> None:
    with pytest.raises(openai.BadRequestError, match="allowed: one of them") as caught:
        server.complete(PROMPT, {"name": "ksa", "budget": BUDGET, "window": 3})
    assert caught.value.param == "kv_policy.budget"


def test_the_start_up_line_names_groups_and_flag(server: ServerUnderTest, log: Path) -> None:
    [line] = [line for line in log.read_text().splitlines() if "--kv-groups N" in line]
    assert "4 layers that can be compressed, in 4 groups (as few as keep full and summary layers apart" in line
