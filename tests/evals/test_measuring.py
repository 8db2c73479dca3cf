"""The whole of it on a real server: a planted defect is found, runs go on, what is forced is what is generated."""

import asyncio
import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from evals import command
from evals.command import asked
from evals.endpoint import Endpoint, Refused
from evals.items import draw
from evals.options import chosen
from evals.oracle import Oracle
from evals.protocols import kv_policy
from models import MINI
from tests.server.running import forking

PLANTED = Path(__file__).parent / "planted"


@pytest.fixture(scope="module")
def server():
    """Base address, and the folder of the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", forking({"PYTHONPATH": str(PLANTED)})["PYTHONPATH"])
        patch.setenv("OMP_NUM_THREADS", "1")
        with asked(chosen(["mini"]).args) as found:
            yield found


@pytest.fixture
def evaluate(server, monkeypatch, tmp_path):
    """Run the command against the server; exit code and the folder with what it wrote."""

    @contextmanager
    def same(_args):
        yield server

    monkeypatch.setattr(command, "asked", same)
    return lambda *argv: (
        command.main(["mini", "--tasks", "niah", *argv, "--out", str(tmp_path / "quality.json")]),
        tmp_path,
    )


def score(made, policy):
    [cell] = [cell for cell in made["cells"] if cell["policy"] == policy]
    return cell["score"]


def test_a_planted_defect_is_found(evaluate):
    """`where(argsort(scores) > forget)` keeps the wrong tokens: it comes out below the right ones, and as no gain."""
    code, folder = evaluate("--policies", "ranked", "mistaken", "--budgets", "0.5", "--items", "60")
    assert code == 0
    made = json.loads((folder / "quality.json").read_text())
    assert score(made, "full")["mean"] > 0.9
    assert score(made, "oracle")["mean"] > 0.9
    assert score(made, "ranked")["low"] > score(made, "mistaken")["high"] + 0.2
    verdicts = {cell["policy"]: (cell["against_random"] or {}).get("verdict") for cell in made["cells"]}
    assert verdicts["ranked"] == "better"
    assert verdicts["mistaken"] in ("same", "worse")
    text = (folder / "quality.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("- niah, 512 tokens")]
    assert "mistaken" in line and "ranked" not in line
    assert (folder / "quality.png").stat().st_size > 10_000
    assert not (folder / "quality.jsonl").exists()


@pytest.fixture
def interruptible():
    """As in a terminal: shells start what they run in the background with Ctrl-C ignored, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_goes_on(evaluate, monkeypatch, capsys):
    run = ("--policies", "knorm", "--budgets", "0.5", "0.25", "--items", "12", "--lengths", "300")
    stock, answers = Endpoint.answer, []

    async def counted(self, sized, policy):
        said = await stock(self, sized, policy)
        answers.append(said)
        if len(answers) == 20:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return said

    monkeypatch.setattr(Endpoint, "answer", counted)
    code, folder = evaluate(*run)
    assert code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    done = sum('"score"' in line for line in (folder / "quality.jsonl").read_text().splitlines())
    assert 0 < done < 12 * 7

    other, _ = evaluate(*run, "--seed", "1")
    assert other == 2
    assert "unfinished run with other settings (command, seed)" in capsys.readouterr().err

    answers[:] = [None] * 20
    code, _ = evaluate(*run)
    assert code == 0
    assert len(answers) - 20 == 12 * 7 - done  # full, and random, oracle and knorm twice
    made = json.loads((folder / "quality.json").read_text())
    assert {cell["items"] for cell in made["cells"]} == {12}
    assert len(made["sessions"]) == 2


def test_what_the_server_refuses_is_reported(evaluate):
    code, folder = evaluate("--policies", "nonsense", "--budgets", "20", "--items", "2", "--lengths", "300")
    assert code == 0
    text = (folder / "quality.md").read_text()
    assert "- nonsense, `inside`: 'nonsense' is not installed on this server" in text
    assert "- random, `inside` at 20 tokens:" in text and "kv_policy.budget is 20" in text
    assert "| **full** |" in text


CASES = [
    ("full", "inside", 1.0, "niah", "completion"),
    ("keydiff", "inside", 0.5, "niah", "completion"),
    ("streaming", "after", 0.5, "niah", "completion"),
    ("snapkv", "after", 0.5, "niah", "chat"),
    ("h2o", "inside", 0.5, "vt", "chat"),
    ("prefixkv", "after", 0.5, "vt", "completion"),
    ("streaming", "decode", 64, "chain", "completion"),
    ("scissorhands", "both", 200, "chain", "completion"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}-{case[4]}")
def test_forced_is_what_is_generated(server, world, case):
    """As long as the answer is right, the most likely tokens of the forced pass are those generated."""
    name, protocol, budget, task, form = case

    async def compare():
        endpoint = Endpoint(server[0], "kvserve-mini")
        known = (await endpoint.policies())[name]["parameters"]["properties"]
        alike = []
        for number in range(6):
            sized = await endpoint.sized(draw(world, task, form, 384, number))
            assert len(sized.prompt) - 12 <= sized.context < len(sized.prompt)
            policy = name if name == "full" else kv_policy(protocol, {"name": name}, known, budget, sized.sizes)
            said, tops = await endpoint.answer(sized, policy), await endpoint.forced(sized, policy, 5)
            right = [max(top, key=top.get) == token for top, token in zip(tops, sized.answer, strict=True)]
            alike.append(all(right) == (said.text.strip() == sized.item.answer.strip()))
        await endpoint.close()
        return alike

    assert all(asyncio.run(compare()))


def test_the_oracle_keeps_what_the_answer_attends_to(server, world):
    """At a budget where chance keeps next to nothing; and it sees no other item's file."""
    url, folder = server

    async def ask():
        endpoint = Endpoint(url, "kvserve-mini")
        oracle, right = Oracle(str(MINI), folder), 0
        known = (await endpoint.policies())["oracle"]["parameters"]["properties"]
        for number in range(10):
            sized = await endpoint.sized(draw(world, "niah", "completion", 512, number, seed=9))
            oracle.look(sized)
            fields = {"name": "oracle", "item": Oracle.name(sized.item)}
            policy = kv_policy("inside", fields, known, 0.15, sized.sizes)
            right += (await endpoint.answer(sized, policy)).text == sized.item.answer
            with pytest.raises(Refused, match="item"):
                await endpoint.answer(sized, {**policy, "item": "../../etc/passwd"})
        await endpoint.close()
        return right

    assert asyncio.run(ask()) >= 9
