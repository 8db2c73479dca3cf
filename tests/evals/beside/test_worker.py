"""kvpress' side: what it says without kvpress, and, where `make kvpress` was run, that both keep the same tokens."""

import asyncio
import sys

import pytest
from tokenizers import Tokenizer

from evals.beside.__main__ import PYTHON, main
from evals.beside.pairs import PAIRS, SAME, kept
from evals.beside.partner import Gone, partner
from evals.items import draw
from models import MINI

needs_kvpress = pytest.mark.skipif(not PYTHON.exists(), reason="`make kvpress` sets up the environment that it needs")


async def ask(python, *questions):
    async with partner(python, str(MINI)) as worker:
        return [await worker.ask(do, **what) for do, what in questions]


def test_without_kvpress_the_worker_says_so():
    with pytest.raises(Gone, match="No module named 'kvpress'"):
        asyncio.run(ask(sys.executable, ("about", {})))


def test_an_interpreter_that_is_not_there(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--python", str(tmp_path / "python")])
    assert "`make kvpress` sets one up" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--budgets", "1.5"), ("--items", "0"), ("--length", "100")])
def test_bad_flags(capsys, flag, value):
    with pytest.raises(SystemExit):
        main([flag, value, "--python", sys.executable])
    assert flag in capsys.readouterr().err


@needs_kvpress
@pytest.mark.slow
def test_both_keep_the_same_tokens(world):
    """Of the same tensors, policies and presses with the same settings choose the same tokens, but for ties."""
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    item = draw(world, "niah", "completion", 512, 0)
    ids, act = tokenizer.encode(item.prompt).ids, len(tokenizer.encode(item.context).ids)
    pairs = [pair for pair in PAIRS if pair.kind == SAME and not pair.draws]
    asked = [(pair.ours, pair.theirs, kept(0.25, act)) for pair in pairs]
    [found] = asyncio.run(ask(PYTHON, ("keeps", {"ids": ids, "act": act, "pairs": asked})))
    for pair, layers in zip(pairs, found, strict=True):
        for ours, theirs, both in layers:
            assert abs(ours - theirs) <= 2 and both >= 0.97 * ours, pair.label


@needs_kvpress
@pytest.mark.slow
def test_one_reading_serves_every_press_as_the_pipeline_does(world):
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    item = draw(world, "niah", "completion", 512, 1)
    ids, act = tokenizer.encode(item.prompt).ids, len(tokenizer.encode(item.context).ids)
    unlike = {str(pair.theirs): pair.theirs for pair in PAIRS}.values()
    runs = [(None, act, 7), *((theirs, kept(0.25, act), 7) for theirs in unlike)]
    what = {"ids": ids, "act": act, "new": 5, "runs": runs}
    answers, whole = asyncio.run(ask(PYTHON, ("answers", what), ("whole", what)))
    assert answers[0] == [item.answer, act]
    for run, (text, left), piped in zip(runs, answers, whole, strict=True):
        assert abs(left - run[1]) <= (run[0] or {}).get("chunk_length", 1)  # kvpress keeps whole chunks only
        if run[0] and run[0].get("beta") == "matched":
            assert piped.startswith("RuntimeError")  # layers of unlike length, and one mask for all
        else:
            assert piped == text, run
