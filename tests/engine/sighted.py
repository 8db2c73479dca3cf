"""Tiny vision models with random weights, made when a test needs them: a folder that vLLM can serve."""

from pathlib import Path
from typing import Any

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm")

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
    "<image> <video> <fake_token_around_image> <end_of_utterance> <global-img>"
).split() + [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
VOCABULARY = 320
PICTURES = {"idefics3": "<image>", "smolvlm": "<image>"}
"""What stands for a picture in a prompt, where it is not Qwen's."""


def prompt(family: str, text: str) -> str:
    """A picture, then `text`."""
    return PICTURES.get(family, "<|vision_start|><|image_pad|><|vision_end|>") + text


def make(family: str, folder: Path) -> Path:
    """Write model, tokenizer and processor of a family into `folder`; returns it."""
    import torch
    from transformers import AutoModelForImageTextToText

    processor = _processor(family)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(_config(family, processor.tokenizer), dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Bytes, and what the families write around pictures."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=SPECIAL
    )


def _processor(family: str) -> Any:
    import transformers as hf

    tokenizer = _tokenizer()
    if family in PICTURES:
        size = {"do_image_splitting": False, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
        if family == "idefics3":
            return hf.Idefics3Processor(hf.Idefics3ImageProcessor(**size), tokenizer, image_seq_len=4)
        return hf.SmolVLMProcessor(
            hf.SmolVLMImageProcessor(**size), tokenizer, hf.SmolVLMVideoProcessor(**size), image_seq_len=4
        )
    size = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}
    size |= {"patch_size": 16 if family == "qwen3-vl" else 14}
    kind, videos = {
        "qwen2-vl": (hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
        "qwen2.5-vl": (hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        "qwen3-vl": (hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor),
    }[family]
    return kind(hf.Qwen2VLImageProcessor(**size), tokenizer, videos(**size))


def _config(family: str, tokenizer: Any) -> Any:
    import transformers as hf

    known = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        **known,
    }
    ids = tokenizer.convert_tokens_to_ids
    if family in PICTURES:
        kind = hf.Idefics3Config if family == "idefics3" else hf.SmolVLMConfig
        eye = {"image_size": 64, "patch_size": 16, "hidden_size": 64, "intermediate_size": 64}
        return kind(
            text_config={"model_type": "llama", **text},
            vision_config={**eye, "num_hidden_layers": 1, "num_attention_heads": 2},
            image_token_id=ids("<image>"),
            scale_factor=2,
            **known,
        )
    eye = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    eye |= {
        "qwen2-vl": {"embed_dim": 64, "hidden_size": 64},
        "qwen2.5-vl": {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 64, "fullatt_block_indexes": [1]},
        "qwen3-vl": {
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "patch_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    if family == "qwen3-vl":
        rope["mrope_interleaved"] = True
    kind = {"qwen2-vl": hf.Qwen2VLConfig, "qwen2.5-vl": hf.Qwen2_5_VLConfig, "qwen3-vl": hf.Qwen3VLConfig}[family]
    if family != "qwen3-vl":
        del text["head_dim"]
        text["num_attention_heads"] = 2
    return kind(
        text_config={**text, "rope_parameters": rope},
        vision_config=eye,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        **known,
    )
