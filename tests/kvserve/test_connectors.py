"""Every KV connector that vLLM knows has its verdict, and the way it is asked for does not matter."""

import ast
import json
from types import SimpleNamespace

import pytest
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvserve.startup.connectors import REFUSED, SERVED, asked_for, problem
from kvserve.startup.refusals import asked, refusal
from tests.kvserve.source_of_vllm import SourceOfVLLM

OFFLOADING = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


def multi(*connectors):
    return {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": list(connectors)}}


def test_every_connector_of_vllm_has_a_verdict():
    assert {*SERVED, *REFUSED} == set(KVConnectorFactory._registry)
    assert not SERVED.keys() & REFUSED.keys()


def test_the_factory_registers_by_calls_that_a_source_shows():
    """So the same can be read from the wheel of another version: see tests/kvserve/record_vllm_0_33.py."""
    found = SourceOfVLLM.installed().find("vllm.distributed.kv_transfer.kv_connector.factory")
    calls = [node for node in ast.walk(found.node) if isinstance(node, ast.Call)]
    names = {
        call.args[0].value
        for call in calls
        if ast.unparse(call.func).endswith("register_connector") and isinstance(call.args[0], ast.Constant)
    }
    assert names == {*SERVED, *REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    assert problem({"kv_connector": name}) == f"KV connector {name}: {REFUSED[name]}"


@pytest.mark.parametrize("given", [dict, json.dumps, lambda fields: KVTransferConfig(**fields)])
def test_however_it_is_written(given):
    assert problem(given(OFFLOADING)) is None
    assert problem(given(NIXL)).startswith("KV connector NixlConnector: disaggregated prefill")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"kv_connector": "Mine"}, "KV connector Mine: not tested"),
        ({**OFFLOADING, "kv_connector_module_path": "mine"}, "OffloadingConnector: not tested, as it comes from"),
        (
            {**OFFLOADING, "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec"}},
            "by TieringOffloadingSpec",
        ),
        (multi(OFFLOADING, NIXL), "KV connector MultiConnector: in it, KV connector NixlConnector: disaggregated"),
        (multi(OFFLOADING, multi(NIXL)), "in it, KV connector MultiConnector: in it, KV connector NixlConnector"),
    ],
)
def test_refused_with_the_reason(config, says):
    assert says in problem(config)


def test_served():
    assert problem(None) is None
    assert problem(multi(OFFLOADING, multi(OFFLOADING))) is None


@pytest.mark.parametrize(
    ("backend", "environ", "name"),
    [
        (None, {}, "OffloadingConnector"),
        ("native", {"VLLM_USE_SIMPLE_KV_OFFLOAD": "0"}, "OffloadingConnector"),
        ("native", {"VLLM_USE_SIMPLE_KV_OFFLOAD": "1"}, "SimpleCPUOffloadConnector"),
        ("lmcache", {}, "LMCacheMPConnector"),
    ],
)
def test_by_size(backend, environ, name):
    args = SimpleNamespace(kv_offloading_size=2.0, kv_offloading_backend=backend, kv_transfer_config=None)
    assert asked_for(args, environ)["kv_connector"] == name


def test_the_size_goes_before_a_named_connector_as_in_vllm():
    args = SimpleNamespace(kv_offloading_size=2.0, kv_transfer_config=KVTransferConfig(**NIXL))
    assert problem(asked_for(args, {})) is None


def test_arguments_are_refused_before_anything_starts():
    assert refusal(asked(SimpleNamespace(kv_transfer_config=OFFLOADING), {})) is None
    said = refusal(asked(SimpleNamespace(kv_transfer_config=json.dumps(NIXL)), {}))
    assert said.startswith("kvserve does not support KV connector NixlConnector: ")


def test_not_with_pipeline_stages():
    said = problem({"kv_connector": "OffloadingConnector"}, stages=2)
    assert said == "KV connector OffloadingConnector: not tested with pipeline parallelism"
