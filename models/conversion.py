"""A GGUF file as a folder that vLLM loads: dequantised to bfloat16, with tokenizer and chat template."""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch
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
        bar.update()
        tokenizer.save_pretrained(folder)
        bar.update()


def _forget_quantisation(model: torch.nn.Module) -> None:
    """transformers marks what it read as quantised; what it writes is not."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
