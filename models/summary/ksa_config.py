"""What the configuration of a published KSA checkpoint says (arXiv:2604.24432, Kuaishou-OneRec/KSA), read without eval.

Such a checkpoint is a Qwen3 folder with fields and weights of its own; its `model_type` stays "qwen3", so that a loader
that does not look here serves it silently as a plain Qwen3.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvserve.startup.guard import UnsupportedError

LONGEST_PATTERN = 1_000  # characters
MOST_LAYERS = 4_096
_LARGEST = 1 << 31

_ALLOWED = {
    "summary_token_num": (1, "one summary token for each chunk"),
    "summary_chunk_position_ids_type": ("origin", "text keeps its own positions"),
    "summary_token_position_ids_type": ("last_chunk_slice_right", "a summary stands where its chunk's last token does"),
}
_REFUSED = {
    "summary_independent_attention_layernorm": "summaries have a norm of their own",
    "summary_independent_qk_norm": "the queries and keys of summaries have norms of their own",
    "attention_bias": "projections have biases",
}


@dataclass(frozen=True)
class SummaryConfig:
    """A checkpoint's layout. `windows` counts chunks, one entry for each layer."""

    chunk: int  # text tokens for each summary
    windows: tuple[int, ...]
    mix: float  # m in m * summary projection + (1 - m) * the text's, behind the norms of queries and keys
    independent: bool  # whether there are summary projections; without them m is 0
    token_begin: int  # row of the embedding that is the summary's
    vocabulary: int  # logits that may be sampled

    @property
    def window(self) -> int:
        """Chunks of text that a summary layer sees before a token's own."""
        return min(self.windows)

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers that keep all text and no summaries: those whose window exceeds the smallest."""
        return tuple(layer for layer, window in enumerate(self.windows) if window > self.window)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each layer "summary" or "full"."""
        return tuple("full" if layer in self.full_layers else "summary" for layer in range(len(self.windows)))

    @property
    def agreed_tokens(self) -> int | None:
        """Length up to which the released prefill and decode agree on what a full layer sees; None without full layers.

        Released prefill takes a full layer's number as a window with summaries behind it, released decode as no limit.
        """
        wide = [self.windows[layer] for layer in self.full_layers]
        return min(wide) * self.chunk if wide else None


def is_ksa(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a model with summary attention."""
    return bool(config.get("use_summary_attention"))


def summary_config(config: Mapping[str, Any]) -> SummaryConfig:
    """The layout that the fields of a `config.json` describe.

    Raises UnsupportedError for what is missing, malformed or not supported, with the field's name and the reason.
    """
    if not is_ksa(config):
        raise UnsupportedError("use_summary_attention is not true: this is no KSA checkpoint")
    for field, (value, meaning) in _ALLOWED.items():
        if config.get(field) != value:
            raise UnsupportedError(f"{field} is {config.get(field)!r}; supported: {value!r} ({meaning})")
    for field, meaning in _REFUSED.items():
        if config.get(field):
            raise UnsupportedError(f"{field} is {config[field]!r}; supported: false (it is true where {meaning})")
    layers = _whole(config, "num_hidden_layers", 1, MOST_LAYERS)
    _all_summary(config, layers)
    independent = config.get("summary_independent_qkv")
    independent = bool(config.get("summary_independent_parameters")) if independent is None else bool(independent)
    begin = _whole(config, "summary_token_begin", 1, _LARGEST)
    return SummaryConfig(
        chunk=_whole(config, "summary_chunk_size", 2, _LARGEST),
        windows=_windows(config, layers),
        mix=_mix(config) if independent else 0.0,
        independent=independent,
        token_begin=begin,
        vocabulary=_vocabulary(config, begin),
    )


def pattern(value: Any, field: str) -> list[int]:
    """A list of whole numbers, or such a list written with `+`, `*` and brackets: "([128]*3+[1024]*1)*6"."""
    if isinstance(value, str):
        if len(value) > LONGEST_PATTERN:
            raise UnsupportedError(f"{field} has {len(value)} characters; allowed: at most {LONGEST_PATTERN}")
        try:
            value = _list(ast.parse(value.strip(), mode="eval").body)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            reason = f" ({error})" if type(error) is ValueError else ""
            raise UnsupportedError(
                f"{field} is {value!r}; allowed: whole numbers, or lists of them joined by + and repeated by *{reason}"
            ) from None
    whole = isinstance(value, list) and all(type(item) is int and 0 <= item < _LARGEST for item in value)
    if not whole or not 0 < len(value) <= MOST_LAYERS:
        raise UnsupportedError(f"{field} is {value!r}; allowed: 1 to {MOST_LAYERS} whole numbers >= 0")
    return list(value)


def _list(node: ast.expr) -> list[int]:
    """The list that an expression of lists, `+` and `*` stands for. Raises ValueError for anything else."""
    if isinstance(node, ast.List):
        return [_number(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _bounded(_list(node.left), 1, _list(node.right))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = (node.right, node.left) if isinstance(node.left, ast.Constant) else (node.left, node.right)
        return _bounded(_list(left), _number(right))
    raise ValueError(f"{type(node).__name__} is not allowed")


def _bounded(items: list[int], times: int, more: list[int] | None = None) -> list[int]:
    if len(items) * times + len(more or []) > MOST_LAYERS:
        raise ValueError(f"more than {MOST_LAYERS} numbers")
    return items * times + (more or [])


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < _LARGEST:
        return node.value
    raise ValueError("a whole number >= 0 is missing")


def _whole(config: Mapping[str, Any], field: str, least: int, most: int) -> int:
    value = config.get(field)
    if type(value) is not int or not least <= value <= most:
        raise UnsupportedError(f"{field} is {value!r}; allowed: a whole number from {least} to {most}")
    return value


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    field = "summary_sliding_chunk_num"
    value = config.get(field)
    windows = [value] * layers if type(value) is int else pattern(value, field)
    if len(windows) != layers:
        raise UnsupportedError(f"{field} has {len(windows)} entries; num_hidden_layers is {layers}")
    if min(windows) < 1:
        raise UnsupportedError(f"{field} is {value!r}; allowed: at least 1 chunk in every layer")
    return tuple(windows)


def _all_summary(config: Mapping[str, Any], layers: int) -> None:
    """Every layer must have summary rows; in the training code 0 marks a layer that these skip."""
    field = "summary_layer_freq"
    if not config.get(field):
        return
    if pattern(config[field], field) != [1] * layers:
        raise UnsupportedError(f"{field} is {config[field]!r}; supported: 1 for each of the {layers} layers")


def _mix(config: Mapping[str, Any]) -> float:
    value = config.get("mix_coeff")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UnsupportedError(f"mix_coeff is {value!r}; allowed: a number from 0 to 1")
    return float(value)


def _vocabulary(config: Mapping[str, Any], begin: int) -> int:
    """Logits that are left of `truncate_predict_nums`; the summary must not be among them."""
    value = config.get("truncate_predict_nums", min(151_936, begin))
    if type(value) is not int or not 0 < value <= begin:
        allowed = f"1 to summary_token_begin, {begin} (else the summary is sampled)"
        raise UnsupportedError(f"truncate_predict_nums is {value!r}; allowed: {allowed}")
    return value
