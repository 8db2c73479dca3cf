"""What an answer will attend to, found out with stock transformers before the question is asked."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from evals.endpoint import Sized
from evals.items import Item
from evals.protocols import SLACK


class Oracle:
    """Writes one file per item for the policy of the same name (`evals/plugin`), in float32 on CPU."""

    def __init__(self, model: str, folder: Path) -> None:
        self._folder = folder
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @staticmethod
    def name(item: Item) -> str:
        return f"{item.task}-{item.form}-{item.length}-{item.number}"

    def look(self, sized: Sized) -> None:
        """Write the attention that the later tokens of an item pay, at every moment when a policy may act."""
        path = self._folder / f"{self.name(sized.item)}.safetensors"
        ids, prompt = sized.prompt + sized.answer, len(sized.prompt)
        moments = sorted({sized.context, prompt, *range((prompt // SLACK + 1) * SLACK, len(ids), SLACK)})
        save_file({"moments": torch.tensor(moments), "mass": self.mass(ids, moments).half()}, path)

    @torch.inference_mode()
    def mass(self, ids: list[int], moments: list[int]) -> torch.Tensor:
        """(M, L, H, n): attention on each token by those from a moment on, summed, mean over a KV head's group."""
        heads = self._model.config.num_key_value_heads
        attentions = self._model(torch.tensor([ids]), output_attentions=True).attentions
        layers = [layer[0].unflatten(0, (heads, -1)).mean(dim=1) for layer in attentions]  # (H, n, n)
        return torch.stack([torch.stack([layer[:, at:].sum(dim=1) for layer in layers]) for at in moments])
