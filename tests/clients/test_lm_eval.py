"""lm_eval with tasks of our own, as docs/clients.md shows it: what it measures under a policy, and what not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.page import block
from tests.clients.shell import Shell
from tests.server.running import KEY, ServerUnderTest, wait_for

pytest.importorskip("lm_eval")

ITEMS = 8


@pytest.fixture
def tasks(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's two tasks and their items, in the folder where its commands run."""
    (shell.folder / "codes.yaml").write_text(block("lm_eval", "yaml", 0))
    (shell.folder / "codes_choice.yaml").write_text(block("lm_eval", "yaml", 1))
    monkeypatch.chdir(shell.folder)
    exec(compile(block("lm_eval", "python"), "docs/clients.md", "exec"), {})
    return shell.folder


def _score(folder: Path, output: str, task: str, metric: str) -> Any:
    [file] = folder.glob(f"{output}_*.json")  # lm_eval puts the time into the name
    results = json.loads(file.read_text())
    assert results["n-samples"][task]["effective"] == ITEMS
    return results["results"][task][f"{metric},none"]


def test_generation_and_likelihood(server: ServerUnderTest, shell: Shell, tasks: Path) -> None:
    def done(policy: str) -> float:
        return server.metric("kvserve_requests_total", policy=policy)

    before = done("streaming")
    generate, compare = block("lm_eval", "sh", 0, server.url), block("lm_eval", "sh", 1, server.url)
    shell.finished(
        compressed=shell.start(generate.replace("lm_eval.json", "compressed.json"), "compressed"),
        plain=shell.start(compare.replace("lm_eval.json", "plain.json"), "plain"),
    )
    assert _score(tasks, "plain", "codes", "exact_match") == 1
    assert _score(tasks, "plain", "codes_choice", "acc") == 1
    assert _score(tasks, "compressed", "codes", "exact_match") <= 0.5  # recent tokens hold few of the codes
    wait_for(lambda: done("streaming") == before + ITEMS)


@pytest.mark.slow  # each lm_eval reads thousands of task files first; test_prompt_logprobs makes the same request
def test_likelihood_under_a_policy_fails_with_the_reason(server: ServerUnderTest, shell: Shell, tasks: Path) -> None:
    header = f', "max_retries": 1, "header": {{"X-KV-Policy": "streaming:0.25", "Authorization": "Bearer {KEY}"}}'
    command = block("lm_eval", "sh", 1, server.url).replace("codes,", "")
    process = shell.start(command.replace('"num_concurrent": 2', '"num_concurrent": 2' + header), "refused")
    assert process.wait(120) != 0
    assert "kv_policy 'streaming' cannot be combined with the log-probabilities of the prompt" in shell.said("refused")
    assert not list(tasks.glob("lm_eval*.json"))
