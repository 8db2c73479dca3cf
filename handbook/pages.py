"""The text of every page."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from handbook.figures import measured
from handbook.needs import needs, requirements
from handbook.quality import quality
from kvserve.policy import Policy, registry
from server.cli.table import allowed

SECTIONS = ("Cost", "When it fails")
PAPERS = ("What the paper claims", "How the released code differs")
"""Headings of handbook/NAME.md: these of all policies, those too of policies that come from a paper."""

HERE = Path(__file__).parent


def names() -> list[str]:
    """The policies that come with kvserve."""
    return [name for name, cls in registry.installed().items() if cls.__module__.startswith("policies.")]


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    made = {f"{name}.md": page(name) for name in names()}
    return {"README.md": index(), **made}


def index() -> str:
    rows = [
        f"| [`{name}`]({name}.md) | {idea(cls)} | {'; '.join(requirements(cls)) or '-'} | {cls.paper or '-'} |"
        for name, cls in ((name, registry.get(name)) for name in names())
    ]
    head = (
        "# The policies\n\nOne page each: generated from the classes by `make pages`, with the sections in `handbook/` "
        "written by hand and figures measured by `make eval` and `make bench-policies`.\n\n"
        "| policy | idea | needs of the server | paper |\n| --- | --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


def page(name: str) -> str:
    cls = registry.get(name)
    parts = [
        f"# {name}",
        f"{idea(cls)}{f' ({cls.paper})' if cls.paper else ''}",
        f"```json\n{json.dumps({'kv_policy': example(cls)})}\n```",
        *(["## How it works", rest] if (rest := formula(cls)) else []),
        "## Parameters",
        parameters(cls),
        "## What it needs",
        "\n".join(f"- {sentence}" for sentence in needs(cls)),
        sections(cls),
        *(["## After a preemption", preempted(cls)] if cls.compresses else []),
        *(["## Measured here", quality(name), measured(name)] if cls.compresses else []),
    ]
    return "\n\n".join(parts) + "\n"


def idea(cls: type[Policy]) -> str:
    return " ".join(inspect.getdoc(cls).partition("\n\n")[0].split())  # type: ignore[union-attr]


def formula(cls: type[Policy]) -> str:
    """What the docstring says beyond its first paragraph."""
    return (inspect.getdoc(cls) or "").partition("\n\n")[2]


def example(cls: type[Policy]) -> str | dict[str, Any]:
    return f"{cls.name}:0.25" if cls.compresses and cls.budgeted else cls.name


def preempted(cls: type[Policy]) -> str:
    """What is the same when the engine has to compute a request again, and what cannot be."""
    chooses = [name for name in cls.reads if name != "summaries"]
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


def sections(cls: type[Policy]) -> str:
    """What is written by hand. Raises ValueError if a heading is missing, too many, or without text."""
    text = (HERE / f"{cls.name}.md").read_text(encoding="utf-8").strip()
    wanted = [*SECTIONS, *(PAPERS if cls.paper else ())]
    before, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    if before.strip() or parts[::2] != wanted or not all(part.strip() for part in parts[1::2]):
        raise ValueError(f"handbook/{cls.name}.md must have exactly these headings: {', '.join(wanted)}")
    return text
