"""Policies as text."""

from textwrap import fill, wrap
from typing import Any

from server.catalog import PolicyCard, PolicyList

WIDTH = 100


def overview(policies: PolicyList) -> str:
    """One line per policy."""
    rows = [("NAME", "READS", "IDEA")]
    rows += [(p.name, ", ".join(p.evidence) or "-", p.idea if p.reason is None else p.reason) for p in policies.data]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    indent = " " * (sum(widths) + 4)
    lines = [
        fill(f"{name:{widths[0]}}  {reads:{widths[1]}}  {idea}", WIDTH, subsequent_indent=indent)
        for name, reads, idea in rows
    ]
    return "\n".join([*lines, "", "`kvserve policies NAME` shows a policy's parameters."])


def details(policy: PolicyCard) -> str:
    """Idea, paper, evidence and parameters of one policy."""
    head = [
        f"{policy.name}: {policy.idea}",
        *([f"paper: {policy.paper}"] if policy.paper else []),
        f"reads: {', '.join(policy.evidence) or 'positions only'}",
        "",
        "parameters:",
    ]
    properties: dict[str, Any] = policy.parameters.get("properties", {})
    return "\n".join(head + [line for name, schema in properties.items() for line in _parameter(name, schema)])


def _parameter(name: str, schema: dict[str, Any]) -> list[str]:
    default = f", default {schema['default']!r}" if "default" in schema else ""
    head = f"  {name}: {allowed(schema)}{default}"
    return [head, *(f"      {line}" for line in wrap(schema.get("description", ""), WIDTH - 6))]


def allowed(schema: dict[str, Any]) -> str:
    """Type and range of a parameter, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {allowed(schema.get('items', {}))}"
    kind = str(schema.get("type", "value"))
    low = _edge(schema, "minimum", ">=", "exclusiveMinimum", ">")
    high = _edge(schema, "maximum", "<=", "exclusiveMaximum", "<")
    limits = " and ".join(limit for limit in (low, high) if limit)
    return f"{kind} {limits}" if limits else kind


def _edge(schema: dict[str, Any], closed: str, at: str, opened: str, beyond: str) -> str:
    if closed in schema:
        return f"{at} {schema[closed]}"
    return f"{beyond} {schema[opened]}" if opened in schema else ""
