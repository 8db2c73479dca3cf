"""The commands of docs/clients.md, which the tests run as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8000"


def block(section: str, language: str, number: int = 0, url: str = ADDRESS) -> str:
    """A code block by its `## section`, language and place, for the server at `url`."""
    [text] = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return str(found[number]).replace(ADDRESS, url)


def without(command: str, *arguments: str) -> str:
    """The same command less these words, each of which it must have."""
    for argument in arguments:
        assert command.count(argument) == 1, f"{argument} is not once in: {command}"
        command = command.replace(argument, "")
    return command
