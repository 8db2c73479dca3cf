"""What the commands share: flags, defaults of the environment, and how a run ends."""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from measuring.journal import OtherSettings
from measuring.report import Report

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def defaults(environ: Mapping[str, str]) -> None:
    """Environment variables; what the caller has set stays."""
    for name, value in environ.items():
        os.environ.setdefault(name, value)


def at_least(made: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """Exits with a message that names the flag and what is allowed; a flag that was not given is well."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            made.error(f"--{name.replace('_', '-')} is {value}; allowed: {smallest} or more")


def listed(made: argparse.ArgumentParser, flag: str, text: str, allowed: Collection[str]) -> list[str]:
    """Names from a text with commas; exits with a message that names the wrong ones."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in allowed]:
        made.error(f"{flag} names {unknown}; allowed: {', '.join(allowed)}")
    return names


def measured(run: Callable[[], None], report: Report) -> bool:
    """Whether the run came to its end. What was measured is written in any case, and printed after Ctrl-C too."""
    try:
        run()
        report.complete = True
    except KeyboardInterrupt:
        print("interrupted: writing what was measured", file=sys.stderr)
    finally:
        report.write()
    print(report.text())
    return report.complete


def attempted(name: str, run: Callable[[], None], failures: tuple[type[Exception], ...], path: Path | None) -> int:
    """Exit code of a run: 0 done, 1 failed in a way that its message explains, 2 other settings, INTERRUPTED.

    path: of the file that an interrupted run goes on from. Failures of tasks in a group count too.
    """
    try:
        run()
    except KeyboardInterrupt:
        again = f"; the same command goes on from {path}" if path else ""
        print(f"\n{name}: interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    except OtherSettings as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if (known := _first(error, failures)) is None:
            raise
        print(f"{name}: {known}", file=sys.stderr)
        return 1
    return 0


def _first(error: Exception, kinds: tuple[type[Exception], ...]) -> Exception | None:
    """The error itself or the first one of its group that is of these kinds."""
    if isinstance(error, ExceptionGroup):
        return next((found for each in error.exceptions if (found := _first(each, kinds))), None)
    return error if isinstance(error, kinds) else None
