"""`python -m deploy.dashboards [--check]`: write the generated files, or say which are not what they should be."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards import alerts, compression, policies

FOLDER = Path(__file__).parents[1]
NOTE = "# Made by `make dashboards` from deploy/dashboards/alerts.py.\n"


def files() -> dict[Path, str]:
    """Every generated file, and what belongs into it."""
    return {
        FOLDER / "grafana" / "compression.json": _json(compression.build()),
        FOLDER / "grafana" / "policies.json": _json(policies.build()),
        FOLDER / "prometheus" / "rules.yaml": _yaml({"groups": alerts.groups()}),
        FOLDER / "kubernetes" / "monitoring" / "rules.yaml": _yaml(alerts.operator_resource()),
    }


def stale() -> list[Path]:
    return [path for path, text in files().items() if not path.is_file() or path.read_text("utf-8") != text]


def _json(value: Any) -> str:
    return json.dumps(value, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _yaml(value: dict[str, Any]) -> str:
    return NOTE + yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    check, old = parser.parse_args().check, stale()
    if check:
        for path in old:
            print(f"{path.relative_to(FOLDER.parent)} is not up to date: run `make dashboards`", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        path.write_text(files()[path], "utf-8")
        print(path.relative_to(FOLDER.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
