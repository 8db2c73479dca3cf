"""What the rows and columns of the table mean."""

from collections.abc import Mapping

from loadtests.sizes import BLOCK, Load, LoadSizes
from loadtests.stage import SLACK

SETTING = (
    "The embedded model, one engine thread, prefix caching on; server and clients share the machine. Load comes from "
    "`vllm bench serve` and, in the soak, from guidellm; every client has one request at a time, no prompt is sent "
    "twice. Medians (quartiles). Absolute figures are of this machine."
)


def legend(sizes: LoadSizes, targets: Mapping[str, float]) -> str:
    """A paragraph and two lists, Markdown."""
    lines = {**_scenarios(sizes), **_columns(targets)}
    return "\n".join([SETTING, "", *(f"- **{name}**: {text}" for name, text in lines.items())])


def _scenarios(s: LoadSizes) -> dict[str, str]:
    return {
        "crossover": f"{_spoken(s.crossover)}, in a pool of {s.pool(1)} blocks of {BLOCK} tokens (100 %: what all "
        "clients need uncompressed) or a share of it; `full` runs first and last, `: full` is relative to their mean",
        "mixed": f"{_spoken(s.mixed)} of each policy at the same time; `: alone`: relative to having the server alone",
        "prefix": f"{_spoken(s.prefix)}, {s.prefix.prefixes} different beginnings",
        "decode": f"{_spoken(s.decode)}, in the smallest pool",
        "churn": f"generators killed {s.churn_rounds} times while their requests run, in the smallest pool; `drained`: "
        "until nothing ran any more",
        "soak": f"{_spoken(s.soak)} of each policy for {s.soak_seconds} s, from guidellm, in the smallest pool",
    }


def _columns(targets: Mapping[str, float]) -> dict[str, str]:
    target = " and ".join(f"{name.upper()} {value:.0f} ms" for name, value in targets.items()) or "not measured"
    return {
        "at once": "most requests that ran together, as the server saw it",
        "TPOT": "time per token without the first",
        "ITL": "between two chunks as the client reads them; where server and clients share few cores they come in "
        "bursts, and TPOT is the steadier figure",
        "goodput": f"requests per second with TTFT and TPOT at most {SLACK} times those of an uncompressed request "
        f"that has the server for itself: {target}",
        "others' CPU": "share of the machine's CPU time that went to other processes meanwhile; where it is not small, "
        "the row is as much about them",
    }


def _spoken(load: Load) -> str:
    prompt = f"{load.prefix} shared + {load.prompt}" if load.prefixes else str(load.prompt)
    many = f"{load.requests} requests" if load.requests else "requests"
    return f"{many} of {prompt} + {load.output} tokens, {load.clients} clients"
