"""How `kvserve serve` turns a command line into vLLM's arguments."""

from argparse import Namespace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from server.cli import embedded, launch, plugins
from server.cli.flags import UsageError


def _args(**changed: Any) -> Namespace:
    return Namespace(
        **{
            "additional_config": {},
            "scheduler_cls": None,
            "worker_cls": "auto",
            "model": None,
            "model_tag": None,
            "served_model_name": None,
            "kv_cache_memory_bytes": None,
            "gpu_memory_utilization": None,
            "kv_policy": None,
            "kv_groups": None,
            "kv_resident_tokens": None,
            **changed,
        }
    )


def test_switches_the_engine_on() -> None:
    args = _args(kv_policy="streaming:0.25", kv_groups=2)
    launch.switch_on(args)
    assert (args.scheduler_cls, args.worker_cls) == (launch.SCHEDULER, launch.WORKER)
    assert args.additional_config == {"kvserve": {"policy": "streaming:0.25", "groups": 2}}


def test_a_canary_with_one_api_process() -> None:
    args = _args(kv_canary=0.1, data_parallel_size=2, api_server_count=1)
    launch.switch_on(args)
    assert args.additional_config == {"kvserve": {"canary": 0.1}}
    launch.switch_on(_args(kv_canary=0.0, api_server_count=2))


def test_merges_additional_config_and_flags_win() -> None:
    args = _args(additional_config={"other": 1, "kvserve": {"groups": 4, "policy": "full"}}, kv_groups=2)
    launch.switch_on(args)
    assert args.additional_config == {"other": 1, "kvserve": {"policy": "full", "groups": 2}}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"kv_policy": "nope"}, "installed"),
        ({"kv_policy": "streaming:0"}, "budget"),
        ({"kv_groups": 0}, "--kv-groups"),
        ({"kv_resident_tokens": -1}, "--kv-resident-tokens"),
        ({"kv_canary": 1.5}, "--kv-canary 1.5: Input should be less than or equal to 1"),
        ({"kv_canary": -0.1}, "--kv-canary -0.1: Input should be greater than or equal to 0"),
        ({"kv_canary": float("nan")}, "--kv-canary nan"),
        ({"kv_canary": 0.1, "api_server_count": 2}, "--kv-canary 0.1 needs one API process.* --api-server-count 1"),
        ({"kv_canary": 0.1, "data_parallel_size": 2}, "--kv-canary 0.1 needs one API process"),
        ({"additional_config": {"kvserve": {"grups": 2}}}, "grups"),
        ({"scheduler_cls": "mine.Scheduler"}, "--scheduler-cls"),
        ({"worker_cls": "mine.Worker"}, "--worker-cls"),
        ({"grpc": True}, "--grpc"),
    ],
)
def test_refuses_with_the_flag_in_the_message(changed: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        launch.switch_on(_args(**changed))


@pytest.mark.parametrize("flags", [["--kv-policy", "nope"], ["--port", "1", "--kv-policy=streaming:2"]])
def test_a_bad_policy_is_exit_code_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.serve(flags) == 2
    assert "--kv-policy" in capsys.readouterr().err


def test_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "folder", lambda: tmp_path)
    args = _args(model_tag="mini")
    assert launch.choose_model(args)
    assert (args.model, args.model_tag, args.served_model_name) == (str(tmp_path), None, ["kvserve-mini"])
    named = _args(model="mini", served_model_name=["x"])
    launch.choose_model(named)
    assert named.served_model_name == ["x"]


@pytest.mark.parametrize("where", ["model_tag", "model"])
def test_named_model(where: str) -> None:
    args = _args(**{where: "some/model"})
    assert not launch.choose_model(args)
    assert (args.model, args.served_model_name) == ("some/model", None)


def test_no_embedded_model_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "folder", lambda: None)
    with pytest.raises(UsageError, match="kvserve serve MODEL"):
        launch.choose_model(_args(model_tag="mini"))


@pytest.mark.parametrize(
    ("changed", "is_mini", "before", "after"),
    [
        ({}, True, {}, "2"),
        ({}, False, {}, None),
        ({}, True, {launch.CPU_CACHE: "7"}, "7"),
        ({"kv_cache_memory_bytes": 1}, True, {}, None),
        ({"gpu_memory_utilization": 0.92}, True, {}, None),
    ],
)
def test_cpu_cache(changed: dict[str, Any], is_mini: bool, before: dict[str, str], after: str | None) -> None:
    launch.prepare_cpu(_args(**changed), is_mini, before)
    assert before.get(launch.CPU_CACHE) == after


def _entry(name: str, group: str) -> EntryPoint:
    return EntryPoint(name, f"{name}:x", group)


FOUND = [
    _entry("kvserve", "vllm.general_plugins"),
    _entry("lora", "vllm.general_plugins"),
    _entry("tpu", "vllm.platform_plugins"),
    _entry("admin", "vllm.endpoint_plugins"),
]


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (None, "lora,tpu,kvserve"),  # endpoint plugins of others do not load unnamed, and we keep it so
        ("", "kvserve"),
        ("admin", "admin,kvserve"),
        ("kvserve,lora", "lora,kvserve"),
    ],
)
def test_vllm_plugins(current: str | None, expected: str) -> None:
    assert plugins.allowed(current, FOUND) == expected


def test_vllms_own_parser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one: unknown flags reach it, MODEL may stand anywhere, dotted JSON flags are merged."""
    pytest.importorskip("vllm")
    monkeypatch.setattr("os.environ", {"PATH": ""})
    monkeypatch.setattr(embedded, "folder", lambda: tmp_path)
    args = launch.parsed(
        [
            "--port",
            "8001",
            "--additional-config.mine",
            "1",
            "mini",
            "--kv-resident-tokens",
            "512",
            "--max-model-len",
            "2k",
        ]
    )
    assert (args.model, args.port, args.max_model_len) == (str(tmp_path), 8001, 2000)
    assert args.additional_config == {"mine": 1, "kvserve": {"resident_tokens": 512}}
    assert (args.host, args.enable_request_id_headers) == ("127.0.0.1", True)
    assert 0 < args.gpu_memory_utilization <= 1
    assert launch.parsed(["--port", "8001", "other/model", "--host", "0.0.0.0"]).host == "0.0.0.0"
    assert launch.parsed(["--model", "other/model"]).model == "other/model"
    with pytest.raises(SystemExit) as caught:
        launch.parsed(["--no-such-flag"])
    assert caught.value.code == 2


def test_a_model_that_cannot_be_had_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setattr("os.environ", {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    monkeypatch.setattr("models.fetch.NEEDS", ())
    assert launch.serve(["gemma-3-270m"]) == 1
    assert "kvserve serve: gemma-3-270m is not downloaded while HF_HUB_OFFLINE=1" in capsys.readouterr().err


def test_whole_prompts_in_cuda_graphs_are_refused() -> None:
    pytest.importorskip("vllm")
    from vllm.config import CompilationConfig

    for fine in (None, {}, CompilationConfig(), {"cudagraph_mode": "FULL_AND_PIECEWISE"}):
        launch.refuse(_args(compilation_config=fine), {})
    for full in ({"cudagraph_mode": "FULL"}, CompilationConfig(cudagraph_mode="FULL")):
        with pytest.raises(UsageError, match="cudagraph_mode FULL"):
            launch.refuse(_args(compilation_config=full), {})
