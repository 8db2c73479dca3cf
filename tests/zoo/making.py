"""Writing a shape to a folder, with weights drawn from a seed."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.zoo.shapes import Shape


def write(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Make the model of this shape and save it."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(shape.model_type, **shape.fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = None
    _unsettle(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _unsettle(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Biases, norms and sinks start at zero or one, where it would not be seen that they are left out."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
