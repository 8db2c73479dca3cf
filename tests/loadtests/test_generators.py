"""What the load generators are told, and what is read from their reports.

The reports are of real runs against `kvserve serve` (8 requests by `vllm bench serve`, 22 by guidellm); guidellm's is
cut down to what is read, with the first-token and token times (ms) and lengths of its requests beside it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.generator import Generator, LoadResult, Run, RunFailed, Target
from loadtests.guidellm_process import Guide, figures, scenario
from loadtests.sizes import Load

HERE = Path(__file__).parent
LOAD = Load(requests=8, clients=4, prompt=600, output=24)


def _report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / name).read_text())
    return found


# -- vllm bench serve ---------------------------------------------------------------------------------


def test_a_result_is_the_tools_own_report() -> None:
    found = _report("bench_serve.json")
    result = LoadResult.of(found)
    assert (result.completed, result.failed) == (8, 0)
    assert result.tokens_per_s == pytest.approx(8 * 24 / found["duration"])
    assert result.goodput == pytest.approx(8 / found["duration"]), "all of them kept the target"
    assert result.ttft_p50_ms == found["median_ttft_ms"] <= result.ttft_p95_ms
    assert result.tpot_p50_ms == found["median_tpot_ms"]


def test_without_a_target_there_is_no_goodput() -> None:
    assert LoadResult.of({**_report("bench_serve.json"), "request_goodput": None}).goodput == 0


class _Ended:
    exitcode = 1

    def join(self) -> None:
        pass


def _run(folder: Path) -> Run:
    run = Run.__new__(Run)
    run._result, run._log, run._process = folder / "run.json", folder / "run.log", _Ended()  # type: ignore[assignment]
    return run


def test_a_run_without_a_result_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("tokenizer not found\n")
    with pytest.raises(RunFailed, match=r"exit code 1.*\ntokenizer not found"):
        _run(tmp_path).result()


def test_a_run_that_was_never_answered_has_no_result(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**_report("bench_serve.json"), "completed": 0, "failed": 8}))
    with pytest.raises(RunFailed):
        _run(tmp_path).result()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of the runs that were started."""
    started: list[list[str]] = []
    monkeypatch.setattr("loadtests.generator.Run", lambda arguments, result: started.append(arguments))
    return started


def _after(flag: str, words: list[str], count: int = 1) -> list[str]:
    at = words.index(flag) + 1
    return words[at : at + count]


def test_the_policy_travels_in_the_extra_body(sent: list[list[str]], tmp_path: Path) -> None:
    commands: list[str] = []
    Generator("http://127.0.0.1:1", tmp_path, commands).start("scissorhands:512", LOAD, Target(ttft=600.4, tpot=25.2))
    (words,) = sent
    assert json.loads(_after("--extra-body", words)[0]) == {"kv_policy": "scissorhands:512"}
    assert _after("--goodput", words, 2) == ["ttft:600.4", "tpot:25.2"]
    assert _after("--num-prompts", words) == ["8"] and _after("--max-concurrency", words) == ["4"]
    assert _after("--random-input-len", words) == ["600"] and _after("--random-output-len", words) == ["24"]
    assert commands[0].startswith("python -m loadtests.bench_serve --base-url http://127.0.0.1:1 ")


def test_no_prompt_is_sent_twice(sent: list[list[str]], tmp_path: Path) -> None:
    for _ in range(3):
        Generator("http://127.0.0.1:1", tmp_path, []).start("full", LOAD)
    assert len({_after("--seed", words)[0] for words in sent}) == 3


def test_shared_prefixes_are_a_dataset_of_their_own(sent: list[list[str]], tmp_path: Path) -> None:
    load = Load(requests=8, clients=4, prompt=120, output=24, prefixes=2, prefix=1024)
    Generator("http://127.0.0.1:1", tmp_path, []).start("full", load)
    (words,) = sent
    assert _after("--dataset-name", words) == ["prefix_repetition"]
    lengths = {name: _after(f"--prefix-repetition-{name}", words)[0] for name in ("prefix-len", "suffix-len")}
    assert lengths == {"prefix-len": "1024", "suffix-len": "120"}
    assert _after("--prefix-repetition-num-prefixes", words) == ["2"]
    assert "--goodput" not in words


# -- guidellm -----------------------------------------------------------------------------------------


def test_figures_of_guidellm_agree_with_its_requests() -> None:
    report = _report("guidellm.json")
    requests = report["benchmarks"][0]["requests"]
    found = figures(report)
    assert found["tokens_per_s"] == pytest.approx(sum(tokens for _, _, tokens in requests) / 5.0)
    good = [1 for first, between, _ in requests if first <= 200 and between <= 25]
    assert found["goodput"] == pytest.approx(len(good) / 5.0)
    assert found["ttft_p50_ms"] in [pytest.approx(first, abs=0.01) for first, _, _ in requests]
    assert found["failed"] == 0


def test_guidellm_without_a_judged_request_has_no_goodput() -> None:
    report = _report("guidellm.json")
    report["benchmarks"][0]["metrics"] |= {"slo_attainment": None, "slo_determined_requests": 0}
    assert figures(report)["goodput"] == 0


def test_the_scenario_names_policy_model_and_target(tmp_path: Path) -> None:
    made = scenario("http://127.0.0.1:1", "snapkv:0.5", LOAD, 60, Target(200, 25), 3, tmp_path / "out.json")["spec"]
    assert made["backend"]["extras"] == {"body": {"kv_policy": "snapkv:0.5", "temperature": 0}}
    assert made["profile"] == {"kind": "concurrent", "streams": [4]}
    assert made["metrics"]["slo"] == {"ttft_ms": 200, "tpot_ms": 25}
    assert made["constraints"] == [{"kind": "max_duration", "seconds": 60}]


def test_guidellm_refuses_what_it_does_not_know_and_we_say_so(tmp_path: Path) -> None:
    made = scenario("http://127.0.0.1:1", "full", LOAD, 1, Target(200, 25), 3, tmp_path / "out.json")
    made["spec"]["profile"] = {"kind": "storm"}
    guide = Guide(tmp_path, "full", made)
    try:
        with pytest.raises(RunFailed, match=r"guidellm \(exit code 2\)[^$]*storm"):
            guide.result()
    finally:
        guide.stop()
