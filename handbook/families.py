"""Families of models: what kvserve compresses of each, and what it refuses and why. docs/models.md is made of it.

`tests/zoo` has a small model for each entry that is marked as compared there, and holds it to what is said here.
"""

from typing import NamedTuple

from kvserve.startup.connectors import REFUSED, SERVED
from kvserve.startup.refusals import NOTHING, REQUESTS, TABLE


class Family(NamedTuple):
    """One row of docs/models.md."""

    title: str
    models: str  # that people know it by
    compressed: str  # which layers
    notes: str = ""
    compared: bool = True  # with transformers in float32: answers, kept tokens, neighbours, prefixes (tests/zoo)


ALL = "all layers"
FULL = "the full-attention layers"

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "Llama", "Llama 2 and 3, Yi, DeepSeek-LLM, SmolLM2", ALL,
        "grouped, multi-head and multi-query attention; head sizes 64 to 256; RoPE plain, linear, YaRN, llama3",
    ),
    "qwen2": Family("Qwen2, Qwen2.5", "also the Coder models", ALL, "biases on queries, keys and values"),
    "qwen3": Family("Qwen3, Qwen3-MoE", "", ALL, "normalised queries and keys; experts"),
    "mixtral": Family("Mixtral", "", ALL, "experts"),
    "olmo": Family("OLMoE", "", ALL, "experts; normalised over all heads at once"),
    "gemma2": Family("Gemma 2", "", FULL, "the soft cap of the logits is part of what policies rank by"),
    "gemma3": Family(
        "Gemma 3", "text and pictures", FULL,
        "window layers stay as vLLM has them; with a picture only `full`, as its tokens attend to each other",
    ),
    "gpt-oss": Family("gpt-oss", "", FULL, "learned sinks are part of what policies rank by"),
    "cohere": Family("Cohere", "Command R", ALL, "interleaved rotation"),
    "cohere2": Family("Cohere 2", "Command R7B, Command A", FULL, "they are not rotated"),
    "exaone4": Family("EXAONE 4", "", FULL, "they are not rotated"),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4-mini", "", ALL, "longrope: the factors that vLLM uses for --max-model-len"),
    "phi": Family("Phi-1, Phi-2", "", ALL, "half of the channels are rotated"),
    "glm": Family("GLM-4", "", ALL, "half of the channels are rotated, interleaved"),
    "llama4": Family("Llama 4", "", "the layers without a chunk of attention", "they are not rotated"),
    "gpt2": Family("GPT-2", "", ALL, "positions are embedded; `triattention` needs a rotation"),
    "opt": Family("OPT", "", ALL, "positions are embedded; `triattention` needs a rotation"),
    "falcon": Family("Falcon", "Falcon-7B", ALL, "one KV head"),
    "gptj": Family("GPT-J", "", ALL, "a part of the channels is rotated, interleaved"),
    "transformers": Family(
        "vLLM's Transformers backend", "any model, `--model-impl transformers`", ALL,
        "the rotation is found in the loaded modules",
    ),
    "qwen3-next": Family(
        "Qwen3-Next", "", FULL,
        "recurrent layers stay as vLLM has them. vLLM's CPU kernel computes in bfloat16: compared with stock vLLM, "
        "and warm with cold prefixes, not with transformers",
    ),
    "gemma3n": Family("Gemma 3n", "", FULL, "a cache that layers share is compacted once", compared=False),
    "qwen-vl": Family(
        "Qwen2-VL, Qwen2.5-VL, Qwen3-VL", "", ALL,
        "with a picture `expected-attention` and `triattention` are refused: its tokens are rotated by several "
        "positions (M-RoPE). Compared with stock vLLM (`tests/engine/test_pictures.py`)",
        compared=False,
    ),
    "idefics3": Family(
        "Idefics3, SmolVLM", "", ALL, "compared with stock vLLM (`tests/engine/test_pictures.py`)", compared=False
    ),
    "mistral-window": Family(
        "a window in all layers", "Mistral-7B-v0.1", "nothing", "served with `full` only; every policy is a 400"
    ),
    "alibi": Family("ALiBi", "Bloom, Falcon-RW, MPT", "nothing", "refused at the start"),
}  # fmt: skip


def blocks() -> dict[str, str]:
    """The blocks of docs/models.md."""
    rows = [
        f"| {f.title} | {f.models or '-'} | {f.compressed} | {'yes' if f.compared else 'no'} | {f.notes or '-'} |"
        for f in FAMILIES.values()
    ]
    head = ["| family | models | compressed | compared | notes |", "| --- | --- | --- | --- | --- |"]
    verdicts = [(name, "yes", how) for name, how in SERVED.items()] + [
        (name, "no", why) for name, why in REFUSED.items()
    ]
    connectors = ["| connector | served | how, or why not |", "| --- | --- | --- |"]
    connectors += [f"| {name} | {verdict} | {why} |" for name, verdict, why in verdicts]
    tables = {"refused": TABLE, "uncompressed": NOTHING, "requests": REQUESTS}
    lists = {name: "\n".join(f"- {reason}" for reason in table) for name, table in tables.items()}
    refused = {"refused": lists.pop("refused"), "connectors": "\n".join(connectors)}
    return {"families": "\n".join([*head, *rows]), **refused, **lists}
