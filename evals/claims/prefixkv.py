"""PrefixKV, arXiv:2412.03409: each layer keeps as much as holds the same share of its attention."""

from functools import partial

import torch
from torch import Tensor

from evals.claims import allocation
from evals.claims.ask import MINI, forced, generated
from evals.claims.claim import Books, Claim, Condition, Figures, Findings
from evals.claims.compare import better, cell
from evals.claims.passes import passes, watched
from evals.intervals import bootstrap

PAPER = "PrefixKV, arXiv:2412.03409"
NAME, OFFLINE, UNIFORM = "prefixkv", "prefixkv profile=offline", "elastic-cache merge=none"
POLICIES = (NAME, '{"name": "prefixkv", "profile": "offline"}', '{"name": "elastic-cache", "merge": "none"}')
BUDGETS, TWO, LENGTH = (0.33, 0.2, 0.1), (0.33, 0.2), 512
ASKS = (
    forced(MINI, POLICIES, task="prose", length=LENGTH, budgets=BUDGETS),
    forced(MINI, POLICIES, task="niah", length=LENGTH, budgets=TWO),
    generated(MINI, POLICIES, task="niah", length=LENGTH, budgets=TWO),
)
NIAH = partial(cell, "niah", LENGTH)
PROSE = partial(cell, "prose", LENGTH)


def layers_differ(items: int) -> Findings:
    """Whether there is anything to allocate: how unevenly layers spread attention, and what 20 % of each holds."""
    conditions, figures = [], []
    for task in ("prose", "niah"):
        texts = (allocation.importance(text.attention) for text in passes(watched("mini"), task, LENGTH, items))
        found = [torch.stack(field) for field in zip(*map(_spread, texts), strict=True)]  # (texts, L) each
        rows = [(f"layer {n}", [bootstrap(x[:, n].tolist()) for x in found]) for n in range(found[0].shape[1])]
        columns = ("Gini", "attention on the best 20 %", "tokens that PrefixKV gives it at 20 %")
        figures.append(Figures(f"{task}: attention summed over the prompt's queries", columns, rows, "%"))
        spread = bootstrap((found[0].amax(1) - found[0].amin(1)).tolist())
        conditions.append(Condition(f"{task}: largest less smallest Gini of a layer", spread, 0.1, ""))
    return Findings(conditions, figures)


def _spread(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one text, each (L,): Gini, what the best 20 % hold, what PrefixKV gives each layer at 20 %."""
    return allocation.gini(scores), allocation.retained(scores, 0.2), allocation.prefix_shares(scores, 0.2)


def uneven(books: Books) -> Findings:
    return Findings(_against(books, NAME, UNIFORM))


def offline(books: Books) -> Findings:
    """The gap, as a share of what uniform budgets cost: less than 2 % of the NLL."""
    answers = books[MINI.name]
    conditions = []
    for budget in BUDGETS:
        found = better(answers, PROSE(OFFLINE, budget), PROSE(NAME, budget), "nll")
        bar = -0.02 * answers.mean(PROSE(NAME, budget), "nll").mean
        conditions.append(found._replace(bar=bar))
    return Findings(conditions)


def _against(books: Books, ours: str, theirs: str) -> list[Condition]:
    answers = books[MINI.name]
    found = [better(answers, PROSE(ours, b), PROSE(theirs, b), "nll") for b in BUDGETS]
    found += [better(answers, NIAH(ours, b), NIAH(theirs, b), "nll") for b in TWO]
    return [*found, *(better(answers, NIAH(ours, b), NIAH(theirs, b)) for b in TWO)]


CLAIMS = (
    Claim(
        "prefixkv-layers",
        PAPER,
        "Layers differ in how their attention is spread, so that equal budgets waste some (section 3)",
        "The premise. Four layers, of which the first looks at the last few tokens and the second matches and copies.",
        look=layers_differ,
    ),
    Claim(
        "prefixkv-uniform",
        PAPER,
        "Budgets by layer beat the same budget for all at equal total (perplexity 3.69, Elastic Cache 14.0, at 20 %)",
        "Same scores, same tokens protected, same total, right positions: only the division differs. Attention summed "
        "over all queries says where attention is spread, not which layer's tokens are needed.",
        ASKS,
        uneven,
    ),
    Claim(
        "prefixkv-offline",
        PAPER,
        "Budgets prepared from a few samples do as well as those of the request itself (section 3)",
        "As well: at most 2 % more NLL of prose. The calibration file holds means over 16 prompts of 2,048 tokens.",
        ASKS[:1],
        offline,
    ),
    Claim(
        "prefixkv-speed",
        PAPER,
        "1.8 times the tokens/s at 20 % kept (LLaVA-1.5-7B, batch 16)",
        "Needs that model and a GPU; what the policy costs and gains on a CPU stands in results/policies.md.",
    ),
)
