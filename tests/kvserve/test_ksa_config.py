"""The fields of published KSA checkpoints: read without eval, refused with the field's name and the reason."""

import pytest

from kvserve.startup.guard import UnsupportedError
from models.summary.ksa_config import LONGEST_PATTERN, is_ksa, pattern, summary_config

RELEASED = {
    "model_type": "qwen3",
    "num_hidden_layers": 24,
    "attention_bias": False,
    "mix_coeff": 1.0,
    "summary_token_begin": 151936,
    "summary_chunk_size": 8,
    "summary_token_num": 1,
    "use_summary_attention": True,
    "summary_sliding_chunk_num": "([128]*3+[1024]*1)*6",
    "summary_chunk_position_ids_type": "origin",
    "summary_token_position_ids_type": "last_chunk_slice_right",
    "summary_independent_parameters": True,
    "summary_independent_attention_layernorm": False,
    "summary_attention_mode": "kernel",
}


def test_the_released_template():
    found = summary_config(RELEASED)
    assert (found.chunk, found.window, found.mix, found.independent) == (8, 128, 1.0, True)
    assert found.full_layers == (3, 7, 11, 15, 19, 23)
    assert found.kinds[:4] == ("summary", "summary", "summary", "full")
    assert found.agreed_tokens == 8192
    assert (found.token_begin, found.vocabulary) == (151936, 151936)


def test_one_window_for_all_layers_leaves_none_full():
    found = summary_config(RELEASED | {"summary_sliding_chunk_num": 64})
    assert (found.window, found.full_layers, found.agreed_tokens) == (64, (), None)


def test_without_projections_of_their_own_summaries_use_the_models():
    assert summary_config(RELEASED | {"summary_independent_parameters": False}).mix == 0
    assert summary_config(RELEASED | {"summary_independent_qkv": False}).mix == 0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("([128]*3+[1024]*1)*6", ([128] * 3 + [1024]) * 6),
        ("([4096]*1+[128]*3)*9", ([4096] + [128] * 3) * 9),
        ("2*[1, 2] + [3]", [1, 2, 1, 2, 3]),
        ("[7]", [7]),
    ],
)
def test_patterns(text, numbers):
    assert pattern(text, "field") == numbers


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "[x for x in range(3)]",
        "[1]*99999999999",
        "[1]*64*65*65",
        "[1]*-1",
        "[-1]",
        "[1.5]",
        "[True]",
        "8*3",
        "[[1]]",
        "[1]+",
        "",
        "[1]*(2+3)",
        "(" * 900 + "[1]",
        "[1]" + "+[1]" * LONGEST_PATTERN,
        "[1]*0",
        {"a": 1},
        [1, "2"],
    ],
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UnsupportedError, match="summary_sliding_chunk_num"):
        pattern(text, "summary_sliding_chunk_num")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("summary_token_num", 2, "summary_token_num is 2; supported: 1"),
        ("summary_chunk_position_ids_type", "inner_chunk", "is 'inner_chunk'; supported: 'origin'"),
        ("summary_token_position_ids_type", "zeros", "is 'zeros'; supported: 'last_chunk_slice_right'"),
        ("summary_independent_attention_layernorm", True, "summary_independent_attention_layernorm is True"),
        ("summary_independent_qk_norm", True, "summary_independent_qk_norm is True"),
        ("summary_layer_freq", "([1]*3+[0]*1)*6", "supported: 1 for each of the 24 layers"),
        ("summary_sliding_chunk_num", [128] * 23, "has 23 entries; num_hidden_layers is 24"),
        ("summary_sliding_chunk_num", 0, "allowed: at least 1 chunk"),
        ("summary_chunk_size", "8", "summary_chunk_size is '8'"),
        ("mix_coeff", 1.5, "mix_coeff is 1.5; allowed: a number from 0 to 1"),
        ("truncate_predict_nums", 151937, "else the summary is sampled"),
        ("summary_token_begin", None, "summary_token_begin is None"),
    ],
)
def test_what_is_not_supported_is_refused(field, value, message):
    with pytest.raises(UnsupportedError, match=message.replace("(", r"\(").replace("[", r"\[")):
        summary_config(RELEASED | {field: value})


def test_a_plain_model_is_none():
    assert not is_ksa({"model_type": "qwen3"})
    with pytest.raises(UnsupportedError, match="no KSA checkpoint"):
        summary_config({"model_type": "qwen3"})
