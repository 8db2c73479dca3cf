"""Convert a published KSA checkpoint (Qwen3 with weights named ``q_proj_summary``) to a folder that kvserve serves.

The base becomes a plain Qwen3 folder: the embedding loses the summary's row, so that a summary can be neither read nor
sampled. The summary's parameters go to ``kvserve/summary.safetensors`` in it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from models.summary.file import BESIDE, check, save
from models.summary.ksa_config import SummaryConfig, summary_config
from models.summary.network import RowLayout
from models.training.reading import ReadingError, Shards, read_config, shape_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def convert(source: Path, target: Path) -> SummaryConfig:
    """Write the folder ``target``; what is there already is replaced file by file, the configuration last.

    Raises ReadingError or UnsupportedError (``kvserve.startup.guard``) for what is no such checkpoint or not supported.
    """
    config = read_config(source)
    found = summary_config(config)
    shape = shape_of(config | {"vocab_size": found.vocabulary})
    shards = Shards(source)
    parameters = summary_parameters(shards, found, shape.layers)
    check(parameters, shape, str(source))
    target.mkdir(parents=True, exist_ok=True)
    _copy_the_rest(source, target)
    dtype = parameters["embedding"].dtype
    _write_base(shards, found, target)
    _write_config(target, config, found)
    layout = RowLayout(found.kinds, found.window, found.chunk)
    save(target / BESIDE, parameters, target, layout, found.mix, dtype, {"source": source.resolve().name})
    return found


def summary_parameters(shards: Shards, found: SummaryConfig, layers: int) -> dict[str, Tensor]:
    """By the names of a summary file; summaries without projections of their own get the text's."""
    embedding = shards.get(EMBEDDING)
    if len(embedding) <= found.token_begin:
        rows = f"{EMBEDDING} has {len(embedding)} rows; summary_token_begin is {found.token_begin}"
        raise ReadingError(f"{rows}: the summary's is missing")
    parameters = {"embedding": embedding[found.token_begin : found.token_begin + 1].clone()}
    suffix = "_summary" if found.independent else ""
    for layer in range(layers):
        for name in PROJECTIONS:
            parameters[f"layers.{layer}.{name}"] = shards.get(f"model.layers.{layer}.self_attn.{name}{suffix}.weight")
    return parameters


def _write_base(shards: Shards, found: SummaryConfig, target: Path) -> None:
    """All other weights in files of the same names, the rows of the vocabulary cut to what may be sampled."""
    kept = {name: path.name for name, path in shards.files.items() if not _of_summaries(name)}
    for file in sorted(set(kept.values())):
        tensors = {name: shards.get(name) for name, place in kept.items() if place == file}
        for name in (EMBEDDING, HEAD):
            if name in tensors:
                tensors[name] = tensors[name][: found.vocabulary].clone()
        save_file(tensors, target / (file + ".part"), metadata={"format": "pt"})
        os.replace(target / (file + ".part"), target / file)
    if len(set(kept.values())) > 1:
        _write(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": kept})


def _of_summaries(name: str) -> bool:
    return name.removesuffix(".weight").endswith("_summary")


def _write_config(target: Path, config: dict[str, Any], found: SummaryConfig) -> None:
    plain = {field: value for field, value in config.items() if not field.startswith("summary_")}
    for field in ("use_summary_attention", "mix_coeff", "truncate_predict_nums", "auto_map"):
        plain.pop(field, None)
    _write(target / "config.json", plain | {"vocab_size": found.vocabulary})


def _copy_the_rest(source: Path, target: Path) -> None:
    """Tokenizer and generation settings; no code."""
    for path in sorted(source.iterdir()):
        known = path.suffix in (".json", ".txt", ".jinja", ".model") and path.name != "config.json"
        if known and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def _write(path: Path, content: dict) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)
