"""What is generated for the policies' pages, and what must be written there by hand."""

import inspect
import json
from typing import Any

from handbook.figures import measured
from handbook.needs import needs, requirements
from handbook.quality import quality
from kvserve.policy import Policy, SummaryTokens, registry
from server.cli.table import allowed

SECTIONS = ("Cost", "When it fails")
PAPERS = ("What the paper claims", "How the released code differs")
"""Headings of what is written by hand: of all policies, and of those too that come from a paper."""


def names() -> list[str]:
    """The policies that come with kvserve."""
    return [name for name, cls in registry.installed().items() if cls.__module__.startswith("policies.")]


def index() -> str:
    """The table of all policies."""
    rows = [
        f"| [`{name}`]({name}.md) | {idea(cls)} | {'; '.join(requirements(cls)) or '-'} | {cls.paper or '-'} |"
        for name, cls in ((name, registry.get(name)) for name in names())
    ]
    return "\n".join(["| policy | idea | needs of the server | paper |", "| --- | --- | --- | --- |", *rows])


def blocks(cls: type[Policy]) -> dict[str, str]:
    """The blocks of a policy's page: what its class says above the text, what was measured below it."""
    about = [
        f"# {cls.name}",
        f"{idea(cls)}{f' ({cls.paper})' if cls.paper else ''}",
        f"```json\n{json.dumps({'kv_policy': example(cls)})}\n```",
        *(["## How it works", rest] if (rest := formula(cls)) else []),
        "## Parameters",
        parameters(cls),
        "## What it needs",
        "\n".join(f"- {sentence}" for sentence in needs(cls)),
    ]
    if not cls.compresses:
        return {"class": "\n\n".join(about)}
    found = ["## After a preemption", preempted(cls), "## Measured here", quality(cls.name), measured(cls.name)]
    return {"class": "\n\n".join(about), "figures": "\n\n".join(found)}


def headings(cls: type[Policy]) -> tuple[str, ...]:
    return (*SECTIONS, *(PAPERS if cls.paper else ()))


def idea(cls: type[Policy]) -> str:
    return " ".join(inspect.getdoc(cls).partition("\n\n")[0].split())  # type: ignore[union-attr]


def formula(cls: type[Policy]) -> str:
    """What the docstring says beyond its first paragraph."""
    return (inspect.getdoc(cls) or "").partition("\n\n")[2]


def example(cls: type[Policy]) -> str | dict[str, Any]:
    return f"{cls.name}:0.25" if cls.compresses and cls.budgeted else cls.name


def preempted(cls: type[Policy]) -> str:
    """What is the same when the engine has to compute a request again, and what cannot be."""
    chooses = [one for one in cls.model_validate({}).evidence if not isinstance(one, SummaryTokens)]
    inherent = (
        "It chooses by numbers that are computed anew, in other pieces than before. They differ in their last bits, so "
        "of tokens that nearly tie another one may stay: that is inherent."
        if chooses
        else "It chooses by positions alone, so exactly the same tokens stay."
    )
    return (
        "The request is computed again from its first token and compacted again at the lengths where it was, to the "
        f"same number of tokens. {inherent} Where load decided when to compact (`when`, `prefill`), it decides once: "
        "the repetition does not ask again. Counters count what is done again once."
    )


def parameters(cls: type[Policy]) -> str:
    schema = cls.model_json_schema()["properties"]
    rows = ["| name | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in schema.items():
        meaning = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {allowed(field)} | `{json.dumps(field.get('default'))}` | {meaning} |")
    return "\n".join(rows)
