"""Scissorhands, arXiv:2305.17118: tokens that mattered will matter again."""

from functools import partial

from evals.cells import RANDOM
from evals.claims import persistence
from evals.claims.answers import balance, full
from evals.claims.ask import FP8, MICRO, MINI, STREAMING, forced, generated
from evals.claims.claim import Books, Claim, Condition, Figures, Findings
from evals.claims.compare import NATS, POINTS, better, cell, each, lossless, no_worse
from evals.claims.passes import passes, watched
from evals.intervals import bootstrap
from evals.markdown import budget_name

PAPER = "Scissorhands, arXiv:2305.17118"
NAME, SNAPKV, LENGTH = "scissorhands", "snapkv", 512
BUDGETS = (0.5, 0.33, 0.2)
TWO = (0.5, 0.2)
SETTINGS = (
    '{"name": "scissorhands", "history": 100}',
    '{"name": "scissorhands", "history": 32}',
    '{"name": "scissorhands", "recent": 32}',
    '{"name": "scissorhands", "variant": "cold-compress"}',
)
NIAH = partial(cell, "niah", LENGTH)
PROSE = partial(cell, "prose", LENGTH)


def persists(items: int, ever: bool) -> Findings:
    """In each layer of mini, over prose and over retrieval prompts."""
    conditions, figures = [], []
    for task in ("prose", "niah"):
        found = persistence.collect(passes(watched("mini"), task, LENGTH, items), ever)
        layers = range(found.persists.shape[1])
        columns = ("pivotal again", "as many at random", "as many newest", "pivotal at first")
        rows = [(f"layer {n}", [bootstrap(field[:, n].tolist()) for field in found]) for n in layers]
        figures.append(
            Figures(f"{task}: of the first half's tokens that are pivotal in the second half", columns, rows, "%")
        )
        for n in layers:
            others = {"random": found.chance, "newest": found.recent}
            again = rows[n][1][0]
            conditions.append(Condition(f"{task}, layer {n}: pivotal again", again, 0.9, POINTS))
            for name, theirs in others.items():
                gain = bootstrap((found.persists - theirs)[:, n].tolist())
                conditions.append(Condition(f"{task}, layer {n}: above as many {name}", gain, 0.0, POINTS))
    return Findings(conditions, figures)


def fivefold(books: Books) -> Findings:
    answers = books[MINI.name]
    right = [no_worse(answers, NIAH(NAME, budget), full(NIAH(NAME, budget))) for budget in BUDGETS]
    return Findings([*right, *(lossless(answers, PROSE(NAME, budget)) for budget in BUDGETS)])


def controls(books: Books) -> Findings:
    answers, others = books[MINI.name], (RANDOM, STREAMING, "h2o")
    right = [better(answers, NIAH(NAME, budget), NIAH(other, budget)) for other, budget in each(others, BUDGETS)]
    nll = [better(answers, PROSE(NAME, b), PROSE(other, b), "nll") for other, b in each(others, BUDGETS)]
    return Findings([*right, *nll])


def settings(books: Books) -> Findings:
    others = [each.label for each in SETTING_ASK.contestants if each.name == NAME and each.label != NAME]
    answers, pairs = books[MINI.name], each(others, TWO)
    right = [no_worse(answers, NIAH(NAME, budget), NIAH(other, budget)) for other, budget in pairs]
    nll = [better(answers, NIAH(NAME, budget), NIAH(other, budget), "nll") for other, budget in pairs]
    return Findings([*right, *(condition._replace(bar=-0.1) for condition in nll)])


def larger(books: Books) -> Findings:
    """What the smaller model loses more than the larger one, on the same items."""
    small, large = books[MICRO.name], books[MINI.name]
    conditions = []
    for policy, budget in each((NAME, SNAPKV), TWO):
        ours = NIAH(policy, budget)
        found = balance([small.values(full(ours)), large.values(ours)], [small.values(ours), large.values(full(ours))])
        conditions.append(Condition(f"{policy} at {budget_name(budget)}: micro loses more", found, 0.0, POINTS))
    return Findings(conditions)


def quantised(books: Books) -> Findings:
    """What fp8 costs where tokens were evicted, against what it costs at full cache."""
    plain, fp8 = books[MINI.name], books[FP8.name]
    conditions = []
    for policy, budget in each((NAME, SNAPKV), TWO):
        ours = NIAH(policy, budget)
        sides = (
            [plain.values(ours, "nll"), fp8.values(full(ours), "nll")],
            [
                fp8.values(ours, "nll"),
                plain.values(full(ours), "nll"),
            ],
        )
        text = f"{policy} at {budget_name(budget)}"
        conditions.append(Condition(f"{text}: NLL of fp8 not added to by eviction", balance(*sides), -0.05, NATS))
        lost = balance([fp8.values(ours)], [plain.values(ours)])
        conditions.append(Condition(f"{text}: exact match gained by fp8", lost, -0.05, POINTS))
    return Findings(conditions)


SETTING_ASK = generated(MINI, (NAME, *SETTINGS), task="niah", length=LENGTH, budgets=TWO)
FIVEFOLD = (
    generated(MINI, (NAME, "h2o"), task="niah", length=LENGTH, budgets=BUDGETS),
    forced(MINI, (NAME, "h2o"), task="prose", length=LENGTH, budgets=BUDGETS),
)

CLAIMS = (
    Claim(
        "scissorhands-persistence",
        PAPER,
        "Persistence of importance: at least 90 % of the tokens that matter later mattered before (section 3)",
        "A token is pivotal for a stretch of queries if those that see it gave it more than the average attention 1/t, "
        "on the mean. The controls say how much of the overlap any other set of as many tokens has.",
        look=partial(persists, ever=False),
    ),
    Claim(
        "scissorhands-persistence-ever",
        PAPER,
        "Persistence of importance, where a token matters that one query gives more than 1/t (another reading)",
        "Nearly every token is above average for some query, so most of the first half is pivotal and the ratio is "
        "high by itself: what counts is the distance to the controls.",
        look=partial(persists, ever=True),
    ),
    Claim(
        "scissorhands-5x",
        PAPER,
        "Up to 5 times less KV cache without loss of quality (abstract): 50, 33 and 20 % kept",
        "Without loss means at most 5 points of exact match, and 2 % of the full cache's NLL of prose (the paper "
        "measures perplexity of text and tasks with few tokens to say, not retrieval).",
        FIVEFOLD,
        fivefold,
    ),
    Claim(
        "scissorhands-controls",
        PAPER,
        "Keeping what mattered is better than keeping what is new (section 5)",
        "Votes of a token are fewer the younger it is, so that at small budgets what is kept is mostly the newest "
        "tokens, as with streaming.",
        FIVEFOLD,
        controls,
    ),
    Claim(
        "scissorhands-settings",
        PAPER,
        "Its settings, a history of 400 queries and 10 recent tokens (as recalled), are not beaten by others",
        "No other history, no more recent tokens and no other project's ranking is more than 5 points or 0.1 "
        "nats better. A longer history makes for more votes of old tokens: what helps here is the bias to new ones.",
        (SETTING_ASK, forced(MINI, (NAME, *SETTINGS), task="niah", length=LENGTH, budgets=TWO)),
        settings,
    ),
    Claim(
        "scissorhands-larger",
        PAPER,
        "Larger models tolerate more compression (OPT 6.7B to 66B, experiments)",
        "mini has three times micro's parameters and the same layers and heads; both have next to no errors at full "
        "cache, so a floor or ceiling hides what there is at large losses.",
        tuple(generated(at, (NAME, SNAPKV), task="niah", length=LENGTH, budgets=TWO) for at in (MICRO, MINI)),
        larger,
    ),
    Claim(
        "scissorhands-fp8",
        PAPER,
        "Eviction combines with quantisation of what is kept (20 times with 4 bits, abstract)",
        "Tested with the 8-bit cache that the CPU engine has (`--kv-cache-dtype fp8`, a quarter of float32's bytes): "
        "what fp8 costs is not more where tokens are evicted than where none are.",
        tuple(
            how(at, (NAME, SNAPKV), task="niah", length=LENGTH, budgets=TWO)
            for how in (generated, forced)
            for at in (MINI, FP8)
        ),
        quantised,
    ),
    Claim(
        "scissorhands-4bit",
        PAPER,
        "20 times less KV cache together with 4-bit quantisation (abstract)",
        "vLLM's CPU engine has no 4-bit KV cache; the 20 is the product of 5 and 4, and the 5 is tested above.",
    ),
)
