"""`kvserve models`: the small real models that can be fetched; fetches one."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from models.fetch import fetch
from models.fetchable import DEFAULT, MODELS, FetchableModel, folder_of, is_fetched
from models.wheels import FetchError

MEGABYTE = 1_000_000
HEAD = ("NAME", "PARAMETERS", "CONTEXT", "LICENCE", "DOWNLOAD", "WHERE")


def show_models(name: str | None, as_json: bool) -> int:
    """List all, or fetch one and say where it is; 1 if it cannot be fetched, 2 if there is none of that name."""
    if name is None:
        cards = [card(model) for model in MODELS.values()]
        print(json.dumps({"object": "list", "data": cards}, indent=2) if as_json else overview(MODELS.values()))
        return 0
    try:
        was_there = name in MODELS and is_fetched(MODELS[name])
        folder = fetch(name)
    except FetchError as error:
        print(f"kvserve models: {error}", file=sys.stderr)
        return 1 if name in MODELS else 2
    except KeyboardInterrupt:
        print("\nkvserve models: interrupted; nothing was kept", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(card(MODELS[name]), indent=2))
    else:
        print(f"{name} {'is' if was_there else 'is now'} in {folder}; `kvserve serve {name}` serves it")
    return 0


def card(model: FetchableModel) -> dict[str, Any]:
    """One model as JSON."""
    return {
        "name": model.name,
        "about": model.about,
        "parameters": model.parameters,
        "context": model.context,
        "licence": model.licence,
        "packages": [f"{wheel.package}=={wheel.version}" for wheel in model.wheels],
        "download_bytes": model.size,
        "sha256": model.sha256,
        "folder": str(folder_of(model.name)),
        "fetched": is_fetched(model),
    }


def overview(models: Iterable[FetchableModel]) -> str:
    """One line per model."""
    rows = [HEAD, *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"`kvserve models NAME` fetches one, `kvserve serve NAME` serves it. Without a name {DEFAULT} is served;",
            "the model `mini` comes with kvserve and is not fetched.",
        ]
    )


def _row(model: FetchableModel) -> tuple[str, ...]:
    return (
        model.name,
        model.parameters,
        f"{model.context:,}",
        model.licence,
        f"{model.size / MEGABYTE:.0f} MB",
        str(folder_of(model.name)) if is_fetched(model) else "not fetched",
    )
