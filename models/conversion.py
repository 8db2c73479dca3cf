"""A GGUF file as a folder that vLLM loads: dequantised to bfloat16, with tokenizer and chat template."""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

STEPS = 4
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def convert(weights: Path, folder: Path, name: str) -> None:
    """Write the model in `weights` to a new folder; one progress bar instead of transformers' several."""
    place = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    bar = tqdm(total=STEPS, desc=f"converting {name}", bar_format=BAR, file=sys.stderr)
    with bar, redirect_stderr(io.StringIO()):
        dense = GgufConfig(dequantize=True)  # else weights stay packed where there is a kernel for them
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16, quantization_config=dense)
        bar.update()
        _forget_quantisation(model)
        model.save_pretrained(folder)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(**place)
        _begin_with_bos(tokenizer, weights)
        bar.update()
        tokenizer.save_pretrained(folder)
        bar.update()


def _forget_quantisation(model: Any) -> None:
    """transformers marks what it read as quantised; what it writes is not."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _begin_with_bos(tokenizer: Any, weights: Path) -> None:
    """transformers does not take over from the file whether texts begin with the first special token."""
    asked = GGUFReader(weights).get_field("tokenizer.ggml.add_bos_token")
    first, number = tokenizer.bos_token, tokenizer.bos_token_id
    if asked is None or not asked.contents() or tokenizer("a").input_ids[0] == number:
        return
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{first} $A", None, [(first, number)])
