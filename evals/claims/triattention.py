"""TriAttention, arXiv:2604.04921: queries before RoPE cluster, so a trigonometric series tells what they attend to."""

from functools import partial

import torch
from torch import Tensor

from evals.cells import RANDOM
from evals.claims import concentration, series
from evals.claims.answers import full
from evals.claims.ask import BIASED, MICRO, MINI, STREAMING, ServedModel, generated
from evals.claims.claim import Books, Claim, Condition, Figures, Findings
from evals.claims.compare import POINTS, better, cell, each, no_worse
from evals.claims.passes import Pass, Watched, passes, watched
from evals.intervals import Estimate, bootstrap, wilson
from models.tasks.generators import retrieval_prompt
from models.training.heads import RETRIEVES, retrieval

PAPER = "TriAttention, arXiv:2604.04921"
NAME, RIVALS, TRACE, LENGTH = "triattention", ("snapkv", "rkv"), 384, 512
BUDGETS = (96, 48)  # of about 190 generated tokens; others protect a window of 32
MODELS = (MINI, MICRO, BIASED)
HIGH = 0.95
NIAH_CELL = partial(cell, "niah", LENGTH)
SEEN_AGO, AHEAD = 96, 64  # tokens of the answer before the moment of judgement, and queries after it
DISTANCES = torch.unique(torch.logspace(0, 8, 40, base=2).round().long())


def concentrated(items: int, served: ServedModel) -> Findings:
    """Each head's R over training prose, as `kvserve calibrate` reads it; which heads retrieve, beside it."""
    model = watched(served.model)
    here = concentration.centre(passes(model, "prose", LENGTH, items, held_out=False))
    there = concentration.centre(passes(model, "niah", LENGTH, items))
    looks = retrieval(model.model, model.tokenizer, [retrieval_prompt(model.tokenizer, n, LENGTH) for n in range(10)])
    columns = (
        "R, strongest band",
        "R, all bands",
        "cosine of its centre with that in niah",
        "attention to the answer's source",
    )
    fields = (here.strongest, here.overall, concentration.alike(here, there), looks)
    heads = torch.cartesian_prod(*map(torch.arange, looks.shape)).tolist()
    rows = [(_head(looks, *at), [_exact(field[tuple(at)]) for field in fields]) for at in heads]
    return Findings(_clustered(served.name, here, looks), [Figures(f"{served.name}: heads", columns, rows)])


def _clustered(name: str, here: concentration.Centre, looks: Tensor) -> list[Condition]:
    share = f"{name}: share of heads with R over {HIGH}"
    retrieves = here.overall[looks >= RETRIEVES]
    conditions = [
        Condition(f"{share} in the strongest band", _over(here.strongest), 0.5, POINTS),
        Condition(f"{share} over all bands", _over(here.overall), 0.5, POINTS),
    ]
    if len(retrieves):
        mean = bootstrap(retrieves.tolist())
        conditions.append(Condition(f"{name}: mean R over all bands of the heads that retrieve", mean, 0.8, ""))
    return conditions


def _over(found: Tensor) -> Estimate:
    return wilson(int((found > HIGH).sum()), found.numel())


def _exact(value: Tensor) -> Estimate:
    """A figure without an interval: it is of all there is."""
    return Estimate(*[float(value)] * 3)


def _head(looks: Tensor, layer: int, head: int) -> str:
    return f"layer {layer}, head {head}" + (" **retrieves**" if looks[layer, head] >= RETRIEVES else "")


def predicts(items: int, served: ServedModel) -> Findings:
    """The series against what happens: logits by distance, and the ranking of keys by attention to come."""
    model = watched(served.model)
    centre = concentration.centre(passes(model, "prose", LENGTH, items, held_out=False))
    curve, ranks = [], []
    for text in passes(model, "chain", LENGTH, items):
        curve.append(series.correlation(*series.curves(centre, text, model.frequencies, DISTANCES)).mean())
        ranks.append(_ranked(centre, text, model))
    by = [bootstrap(column) for column in zip(*ranks, strict=True)]
    pearson = bootstrap([float(value) for value in curve])
    names = ("trig + norm", "norm alone", "newest first", "attention of the last 8 queries")
    figure = Figures(
        f"{served.name}, chain, mean over heads: rank correlation with the attention of the next {AHEAD} queries",
        ("correlation",),
        [(name, [found]) for name, found in zip(names, by, strict=True)],
    )
    gains = [bootstrap([row[0] - row[i] for row in ranks]) for i in (1, 2)]
    conditions = [
        Condition(f"{served.name}: Pearson's correlation of logits by distance with the series", pearson, 0.5, ""),
        Condition(f"{served.name}: rank correlation of trig + norm", by[0], 0.3, ""),
        *(
            Condition(f"{served.name}: rank correlation above that of {name}", gain, 0.0, "")
            for name, gain in zip(names[1:3], gains, strict=True)
        ),
    ]
    return Findings(conditions, [figure])


def _ranked(centre: concentration.Centre, text: Pass, model: Watched) -> list[float]:
    """Mean over heads of the rank correlation with attention to come, for each way to rank."""
    n = text.attention.shape[-1]
    now = n - text.answers + SEEN_AGO
    future = text.attention[:, :, now : now + AHEAD, :now].sum(2)
    trig, norm = series.scores(centre, text.keys[:, :now], model.frequencies, now)
    newest = torch.arange(now).expand_as(norm)
    last = text.attention[:, :, now - 8 : now, :now].sum(2)
    return [float(series.rank_correlation(rank, future).mean()) for rank in (trig + norm, norm, newest, last)]


def decodes(books: Books, served: ServedModel, name: str) -> Findings:
    conditions = []
    for other, budget in each((*RIVALS, RANDOM, STREAMING), BUDGETS):
        ours, theirs = (cell("chain", TRACE, policy, budget, "decode") for policy in (name, other))
        conditions.append(better(books[served.name], ours, theirs))
    return Findings(conditions)


def ablated(books: Books) -> Findings:
    whole = cell("chain", TRACE, "triattention recent=32", BUDGETS[1], "decode")
    return Findings([better(books[MINI.name], whole, whole._replace(policy=label)) for label in ABLATED])


def unprotected(books: Books) -> Findings:
    """Without protection it forgets what the full cache finds, and is no better than random."""
    conditions = []
    for at in (MINI, BIASED):
        answers, ours = books[at.name], NIAH_CELL(NAME, 0.5)
        for found in (better(answers, full(ours), ours), no_worse(answers, NIAH_CELL(RANDOM, 0.5), ours)):
            conditions.append(found._replace(text=f"{at.name}: {found.text}"))
    return Findings(conditions)


WINDOWED = '{"name": "triattention", "recent": 32}'
ABLATIONS = (
    '{"name": "triattention", "recent": 32, "norm": false}',
    '{"name": "triattention", "recent": 32, "trig": false}',
)
ABLATED = ("triattention recent=32 norm=False", "triattention recent=32 trig=False")
TRACES = partial(generated, task="chain", length=TRACE, protocol="decode")
NIAH = partial(generated, task="niah", length=LENGTH)
ASK = {at: TRACES(at, (NAME, WINDOWED, *RIVALS), budgets=BUDGETS) for at in (MINI, BIASED)}
CLAIMS = (
    *(
        Claim(
            f"triattention-concentration-{at.name}",
            PAPER,
            "Before RoPE, queries cluster around a fixed centre in most heads (as quoted, R above 0.95 in about "
            "90 % of heads; of which bands is not said)",
            "With 16 heads only most, more than half, can be tested. R of the band with the longest queries and R over "
            "all bands are different things; a head that retrieves must turn its query with what it looks for.",
            look=partial(concentrated, served=at),
        )
        for at in MODELS
    ),
    *(
        Claim(
            f"triattention-series-{at.name}",
            PAPER,
            "The centres predict attention by distance, and so which keys later queries will attend to (section 3)",
            "Bars are ours: Pearson's 0.5, Spearman's 0.3. Norms and age are what one has without the series.",
            look=partial(predicts, served=at),
        )
        for at in MODELS
    ),
    *(
        Claim(
            f"triattention-decode-{at.name}",
            PAPER,
            "While generating, better than SnapKV and R-KV at equal budget (AIME24 at 2,048: 42.1 against 34.6 and "
            f"25.4); where the premise is {premise} met",
            "As in the paper's research code the prompt is protected and no recent token is; beside it 96 or 48 of "
            "about 190 generated tokens stay. Its rivals protect 8 (R-KV) or 32 recent ones.",
            (ASK[at],),
            partial(decodes, served=at, name=NAME),
        )
        for at, premise in ((MINI, "not"), (BIASED, "more nearly"))
    ),
    *(
        Claim(
            f"triattention-window-{at.name}",
            PAPER,
            "The same with 32 recent tokens protected (its vLLM plug-in protects 128); where the premise is "
            f"{premise} met",
            "A line of the report is finished from what stands a few tokens back: whoever evicts that loses, whatever "
            "else is kept. With equal windows the rankings are compared.",
            (ASK[at],),
            partial(decodes, served=at, name="triattention recent=32"),
        )
        for at, premise in ((MINI, "not"), (BIASED, "more nearly"))
    ),
    Claim(
        "triattention-parts",
        PAPER,
        "Both parts of its score help: without either it is worse (ablations)",
        "At 48 tokens, of which 32 are the newest ones, so that 16 are left to the score.",
        (TRACES(MINI, (WINDOWED, *ABLATIONS), budgets=BUDGETS[1:]),),
        ablated,
    ),
    Claim(
        "triattention-prompt",
        PAPER,
        "No claim but a limit, for which the paper protects the prompt: unprotected, facts not asked for yet are lost",
        "Half of the prompt stays, by keys that suit the average query, without recent tokens (the protocol `inside` "
        "protects no prompt).",
        tuple(NIAH(at, (NAME,), budgets=(0.5,)) for at in (MINI, BIASED)),
        unprotected,
    ),
    Claim(
        "triattention-speed",
        PAPER,
        "2.5 times the throughput on AIME25 at equal accuracy, 10.7 times less memory",
        "Needs an 8B model and 32K generated tokens; 10.7 is maximum length over budget. What the policy costs and "
        "gains on a CPU stands in results/policies.md.",
    ),
)
