"""Which heads retrieve, and how concentrated the queries of each head are before RoPE (TriAttention's premise).

R of a head is the sum over RoPE bands of |E q| divided by that of E|q|: 1 if all queries point the same way, near 0 if
they point everywhere. A head retrieves as far as the places that produce a code attend to where the code stands.
"""

import argparse
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from models.tasks.generators import RetrievalItem, retrieval_prompt
from models.tasks.tokens import ASSISTANT, BOS, USER, encode
from models.training.evaluate import load
from models.training.family import FAMILY

RETRIEVES = 0.3  # attention from which on a head is called a retrieval head


@dataclass
class HeadQueries:
    """Sums over all queries of each layer: of the complex channel pairs and of their moduli, ``(heads, bands)``."""

    total: list[Tensor] = field(default_factory=list)
    moduli: list[Tensor] = field(default_factory=list)

    def watch(self, model) -> None:
        for number, layer in enumerate(model.model.layers):
            self.total.append(torch.zeros(()))
            self.moduli.append(torch.zeros(()))
            layer.self_attn.q_norm.register_forward_hook(lambda _m, _i, q, number=number: self._add(number, q))

    def _add(self, layer: int, q: Tensor) -> None:
        """``q`` is ``(1, tokens, heads, head_dim)``."""
        pairs = torch.complex(*q[0].chunk(2, -1))
        self.total[layer] = self.total[layer] + pairs.sum(0)
        self.moduli[layer] = self.moduli[layer] + pairs.abs().sum(0)

    def concentration(self) -> Tensor:
        """R, ``(layers, heads)``."""
        pairs = zip(self.total, self.moduli, strict=True)
        return torch.stack([total.abs().sum(-1) / moduli.sum(-1) for total, moduli in pairs])


@torch.inference_mode()
def retrieval(model, tokenizer, items: list[RetrievalItem]) -> Tensor:
    """Mean attention from the places that produce a code's digits to those digits in the text, ``(layers, heads)``."""
    shares = []
    for item in tqdm(items, unit="prompt"):
        ids = encode(tokenizer, BOS + USER + item.text + ASSISTANT + item.reply)
        code = encode(tokenizer, f" {item.answer}")
        first, last = (_find(ids, encode(tokenizer, f" is {item.answer}"), back) for back in (False, True))
        maps = model(torch.tensor([ids]), output_attentions=True).attentions
        digits = torch.arange(len(code)) + 1  # behind " is"
        shares.append(torch.stack([a[0, :, last + digits - 1, first + digits].mean(-1) for a in maps]))
    return torch.stack(shares).mean(0)


def _find(ids: list[int], piece: list[int], back: bool) -> int:
    places = [at for at in range(len(ids) - len(piece) + 1) if ids[at : at + len(piece)] == piece]
    return places[-1 if back else 0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.heads", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=sorted(FAMILY), default="mini")
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load(FAMILY[args.model].folder)
    model.set_attn_implementation("eager")
    queries = HeadQueries()
    queries.watch(model)
    share = retrieval(model, tokenizer, [retrieval_prompt(tokenizer, seed, args.tokens) for seed in range(args.items)])
    print("| layer | head | attention to the code | R of its queries |\n| --- | --- | --- | --- |")
    r = queries.concentration()
    for layer, head in torch.cartesian_prod(*map(torch.arange, share.shape)).tolist():
        mark = " **retrieves**" if share[layer, head] >= RETRIEVES else ""
        print(f"| {layer} | {head} | {share[layer, head]:.2f}{mark} | {r[layer, head]:.2f} |")


if __name__ == "__main__":
    main()
