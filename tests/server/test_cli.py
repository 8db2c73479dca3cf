"""`kvserve policies`, `kvserve doctor`, `--version`, and the tables they print."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from kvserve.policy import registry
from kvserve.startup import guard
from kvserve.startup.refusals import TABLE, asked, refusal
from server.cli import architecture, embedded
from server.cli import main as cli
from server.cli.table import allowed


def test_policies_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in registry.installed())


@pytest.mark.parametrize("name", sorted(registry.installed()))
def test_policy_shows_every_parameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies", name]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {field}: " in printed for field in registry.get(name).model_fields)


def test_policies_json_is_what_the_endpoint_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in listed["data"]] == list(registry.installed())
    assert cli.main(["policies", "streaming", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one in listed["data"]
    assert one["parameters"]["properties"]["sinks"]["type"] == "integer"


def test_unknown_policy_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies", "nope"]) == 2
    assert "streaming" in capsys.readouterr().err


def test_check_policy_says_what_it_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["check-policy", "knorm:0.25", "--no-engine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "knorm: all checks hold"
    assert len(lines) > 5 and all(line.startswith("ok ") for line in lines[:-1])
    monkeypatch.setattr(registry.get("knorm"), "scores", lambda self, view: view.keys[0])
    assert cli.main(["check-policy", "knorm:0.25", "--no-engine"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("failed ") and "scores are of shape (700, 16)" in line for line in lines)
    assert "checks failed" in lines[-1]


def test_check_policy_lists_what_is_installed_and_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-policy", "nope"]) == 2
    assert "installed: chunkkv, criticalkv, elastic-cache, expected-attention" in capsys.readouterr().err
    assert cli.main(["check-policy", '{"name": "snapkv", "window": 0}']) == 2
    assert "kv_policy.window is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 16, "maximum": 4096}, "integer >= 16 and <= 4096"),
        ({"type": "number", "exclusiveMinimum": 0}, "number > 0"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or null"),
        ({"enum": ["a", "b"]}, "'a' or 'b'"),
        ({"type": "array", "items": {"type": "number"}}, "list of number"),
    ],
)
def test_ranges_in_words(schema: dict[str, object], text: str) -> None:
    assert allowed(schema) == text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("kvserve 0.")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("serve", "policies", "check-policy", "doctor", "examples:"))


# -- doctor -------------------------------------------------------------------------------------------

MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "head_dim": 64,
}


def _examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str | None = None, **changed: object) -> int:
    monkeypatch.setattr(guard, "problem", lambda: why)  # imports vLLM
    monkeypatch.setattr(architecture, "_layout", lambda size: iter(()))  # imports vLLM's kernels
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, **changed}))
    return cli.main(["doctor", str(tmp_path)])


def test_doctor_is_content_with_a_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _examine(tmp_path, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "4 layers, 2 KV heads, head size 64" in printed
    assert "speculative decoding" in printed


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"kv_lora_rank": 512}, "MLA"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"sliding_window": 4096}, "sliding window"),
        ({"layer_types": ["sliding_attention"] * 4}, "full attention"),
    ],
)
def test_doctor_says_why_not(
    changed: dict[str, object],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _examine(tmp_path, monkeypatch, **changed) == 1
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("word", ["Scheduler.gone", "0.99.0"])
def test_doctor_says_what_the_guard_says(
    word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert _examine(tmp_path, monkeypatch, f"vLLM has no {word}") == 1
    assert word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "changed", "code"),
    [("VLLM_MLA_DISABLE", {"kv_lora_rank": 512}, 0), ("VLLM_USE_V2_MODEL_RUNNER", {}, 0)],
)
def test_doctor_and_serve_read_the_environment_alike(
    variable: str, changed: dict[str, object], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert _examine(tmp_path, monkeypatch, **changed) == code
    refused = refusal(asked(Namespace(), {**MODEL, **changed}))
    assert (refused is not None) == bool(code)


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md", "docs/life-of-a-request.md"])
def test_pages_keep_no_list_of_their_own(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert [reason for reason in TABLE if reason.partition(":")[0] in text] == []


def test_doctor_without_any_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(embedded, "folder", lambda: None)
    assert cli.main(["doctor"]) == 1
    assert "cannot serve: model" in capsys.readouterr().out
