"""Elastic Cache, arXiv:2407.18121: merge the prompt into anchors, then delete at a fixed slot."""

from functools import partial

from evals.cells import RANDOM
from evals.claims.ask import MINI, STREAMING, forced, generated
from evals.claims.claim import Books, Claim, Findings
from evals.claims.compare import better, cell, each

PAPER = "Elastic Cache, arXiv:2407.18121"
NAME, EVICTS, VALUES = "elastic-cache", "elastic-cache merge=none", "elastic-cache merge=values"
RELEASE, H2O = "elastic-cache variant=release", "h2o"
MERGING = (
    NAME,
    '{"name": "elastic-cache", "merge": "values"}',
    '{"name": "elastic-cache", "merge": "none"}',
)
RELEASED = '{"name": "elastic-cache", "variant": "release"}'
BUDGETS, TWO, LENGTH, TRACE, GENERATED = (0.33, 0.2, 0.1), (0.33, 0.2), 512, 384, 64
ASKS = (
    forced(MINI, (*MERGING, H2O), task="prose", length=LENGTH, budgets=BUDGETS),
    forced(MINI, (*MERGING, H2O), task="niah", length=LENGTH, budgets=TWO),
    generated(MINI, (*MERGING, H2O), task="niah", length=LENGTH, budgets=TWO),
)
NIAH = partial(cell, "niah", LENGTH)
PROSE = partial(cell, "prose", LENGTH)


def merges(books: Books) -> Findings:
    answers = books[MINI.name]
    found = [better(answers, PROSE(NAME, b), PROSE(EVICTS, b), "nll") for b in BUDGETS]
    found += [better(answers, NIAH(NAME, b), NIAH(EVICTS, b), "nll") for b in TWO]
    return Findings([*found, *(better(answers, NIAH(NAME, b), NIAH(EVICTS, b)) for b in TWO)])


def values_only(books: Books) -> Findings:
    answers = books[MINI.name]
    found = [better(answers, PROSE(VALUES, b), PROSE(NAME, b), "nll") for b in BUDGETS]
    return Findings([*found, *(better(answers, NIAH(VALUES, b), NIAH(NAME, b), "nll") for b in TWO)])


def others(books: Books) -> Findings:
    """At equal budgets against those that the paper has, and random."""
    answers, them = books[MINI.name], (STREAMING, H2O, RANDOM)
    found = [better(answers, PROSE(NAME, b), PROSE(them_, b), "nll") for them_, b in each(them, BUDGETS)]
    return Findings([*found, *(better(answers, NIAH(NAME, b), NIAH(o, b)) for o, b in each(them, TWO))])


def fixed_point(books: Books) -> Findings:
    trace = partial(cell, "chain", TRACE, budget=GENERATED, protocol="decode-open")
    return Findings([better(books[MINI.name], trace(NAME), trace(other)) for other in (H2O, STREAMING, RANDOM)])


def released(books: Books) -> Findings:
    answers = books[MINI.name]
    return Findings([better(answers, PROSE(NAME, b), PROSE(RELEASE, b), "nll") for b in TWO])


CLAIMS = (
    Claim(
        "elastic-merge",
        PAPER,
        "Merging what is evicted into its nearest anchor beats evicting it at the same budget (sections 3 and 4)",
        "NLL that falls while exact match does not rise means answers that are wrong with less confidence, not answers "
        "that are found. Both keep the same tokens, of the newest only the last one.",
        ASKS,
        merges,
    ),
    Claim(
        "elastic-values",
        PAPER,
        "No claim but a doubt: merging keys that are already rotated costs more than it gives; values alone do better",
        "Keys are averaged with the rotation of their positions in them. Reproduced would mean that the method gains "
        "by leaving keys alone.",
        ASKS,
        values_only,
    ),
    Claim(
        "elastic-others",
        PAPER,
        "At 10 and 20 % kept, lower perplexity than H2O and the local window (14.0, 48.3 and 105 at 20 %, by PrefixKV)",
        "Of the newest tokens it protects only the last one, and a plain sum over queries favours old tokens; H2O, "
        "streaming and random keep 32 or more recent ones.",
        ASKS,
        others,
    ),
    Claim(
        "elastic-fixed-point",
        PAPER,
        "While generating, deleting at a fixed slot is at least as good as scoring anew (section 3)",
        "Deletion begins 25 slots before the end of the prompt and goes on with the oldest generated tokens, which "
        "later lines need; streaming gives up the oldest lines of the program instead, which have been run by then.",
        (generated(MINI, (NAME, H2O), task="chain", length=TRACE, budgets=(GENERATED,), protocol="decode-open"),),
        fixed_point,
    ),
    Claim(
        "elastic-released",
        PAPER,
        "The method as described beats its released code, which takes indices for ranks (found by reading it)",
        "Attention sums fall with position, for which the mistake does nothing; it matters as far as they do not.",
        (forced(MINI, (NAME, RELEASED), task="prose", length=LENGTH, budgets=TWO),),
        released,
    ),
    Claim(
        "elastic-speed",
        PAPER,
        "Up to 77.9 % faster generation at 20 % kept (abstract)",
        "Needs a vision-language model on a GPU, whose step time the cache decides; what the policy costs and gains on "
        "a CPU stands in results/policies.md.",
    ),
)
