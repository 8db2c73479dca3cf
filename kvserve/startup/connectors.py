"""vLLM's KV connectors by name: served beside compression, or the reason why not. docs/models.md has the table.

A request with a compressing policy is hidden from a served connector: see `kvserve.engine.connector`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

SERVED: dict[str, str] = {
    "OffloadingConnector": "to CPU memory (`--kv-offloading-size`): requests with a compressing policy are neither "
    "stored nor loaded",
    "MultiConnector": "if all connectors in it are served",
}
"""Connector -> how it is served."""

_REMOTE = "disaggregated prefill: it sends or fetches a request's blocks by token position, on its own time"
_STORE = "an outside store: it reads and writes a request's blocks by token position, on its own time"
REFUSED: dict[str, str] = {
    "NixlConnector": _REMOTE,
    "NixlPullConnector": _REMOTE,
    "NixlPushConnector": _REMOTE,
    "MooncakeConnector": _REMOTE,
    "MoRIIOConnector": _REMOTE,
    "LMCacheConnectorV1": _STORE,
    "LMCacheMPConnector": _STORE,
    "MooncakeStoreConnector": _STORE,
    "FlexKVConnectorV1": _STORE,
    "HF3FSKVConnector": _STORE,
    "SimpleCPUOffloadConnector": "it needs CUDA and was not tested; OffloadingConnector does the same",
    "HiSparseConnector": "it moves pages of sparse attention, which is not served",
    "ExampleConnector": "an example: it stores a prompt before all of it is read, if it is read in chunks",
    "ExampleHiddenStatesConnector": "an example: it writes hidden states, and was not tested",
    "DecodeBenchConnector": "for benchmarks: it fills the cache with made-up values",
}
"""Connector -> why it is refused."""

NATIVE = "CPUOffloadingSpec"
"""The one place to offload to that was tested: plain CPU memory."""
SIMPLE = "VLLM_USE_SIMPLE_KV_OFFLOAD"


def problem(config: Any, stages: int = 1) -> str | None:
    """Why a connector is refused; None if it is served, or if there is none.

    config: vLLM's KVTransferConfig, or its fields, as an object or as JSON. stages: of the pipeline. Raises ValueError
    for JSON that is none.
    """
    if not config:
        return None
    found = _fields(config)
    name, extra = found.get("kv_connector"), found.get("kv_connector_extra_config") or {}
    why = (
        "not tested with pipeline parallelism"
        if stages > 1
        else _refused(str(name), bool(found.get("kv_connector_module_path")), extra)
    )
    return f"KV connector {name}: {why}" if why else None


def _refused(name: str, foreign: bool, extra: Mapping[str, Any]) -> str | None:
    if foreign or name not in SERVED:
        return "not tested, as it comes from a module of its own" if foreign else REFUSED.get(name, "not tested")
    if name == "MultiConnector":
        inner = [why for each in extra.get("connectors") or [] if (why := problem(each))]
        return f"in it, {'; '.join(inner)}" if inner else None
    place = extra.get("spec_name", NATIVE)
    return None if place == NATIVE else f"offloading by {place} was not tested, only by {NATIVE}"


def _fields(config: Any) -> Mapping[str, Any]:
    if isinstance(config, str):
        config = json.loads(config)
    return config if isinstance(config, Mapping) else vars(config)


def asked_for(args: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """What `problem` takes, from parsed arguments of `vllm serve`: --kv-offloading-size goes before, as in vLLM."""
    config = getattr(args, "kv_transfer_config", None)
    if getattr(args, "kv_offloading_size", None) is None:
        return config
    fields = dict(_fields(config)) if config else {}
    return {**fields, "kv_connector": _offloading(getattr(args, "kv_offloading_backend", None) or "native", environ)}


def _offloading(backend: str, environ: Mapping[str, str]) -> str:
    """The connector that --kv-offloading-backend means."""
    if backend != "native":
        return "LMCacheMPConnector" if backend == "lmcache" else backend
    simple = environ.get(SIMPLE, "0") not in ("", "0")
    return "SimpleCPUOffloadConnector" if simple else "OffloadingConnector"
