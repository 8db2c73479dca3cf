"""The flags that `kvserve serve` adds to those of `vllm serve`."""

from argparse import SUPPRESS, ArgumentParser, Namespace, _ArgumentGroup

from pydantic import ValidationError

from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError
from kvserve.startup.options import KVOptions

FLAGS = {
    "policy": (str, "NAME[:BUDGET]"),
    "groups": (int, "N"),
    "resident_tokens": (int, "N"),
    "calibration": (str, "FILE"),
    "canary": (float, "RATE"),
}
"""Fields of KVOptions that operators set: type and how help shows the value."""


class UsageError(ValueError):
    """The command line cannot be served as it is."""


def add_flags(group: ArgumentParser | _ArgumentGroup) -> None:
    """One flag per field, explained by the field; left out means the field's default."""
    for name, (kind, metavar) in FLAGS.items():
        field = KVOptions.model_fields[name]
        default = "none" if field.default is None else field.default
        text = f"{field.description} (default: {default})".replace("%", "%%")
        group.add_argument(flag(name), dest=f"kv_{name}", type=kind, metavar=metavar, default=SUPPRESS, help=text)


def flag(field: str) -> str:
    return f"--kv-{field.replace('_', '-')}"


def options_of(args: Namespace) -> KVOptions:
    """The user's --additional-config '{"kvserve": ...}' with our flags over it. Raises UsageError."""
    fields = dict((getattr(args, "additional_config", None) or {}).get("kvserve", {}))
    given = {name: getattr(args, f"kv_{name}", None) for name in FLAGS}
    fields |= {name: value for name, value in given.items() if value is not None}
    try:
        options = KVOptions(**fields)
        if options.policy is not None:
            wire.read(options.policy)
    except PolicyError as error:
        raise UsageError(f"{flag('policy')} {fields['policy']}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{flag(str(first['loc'][0]))} {first['input']!r}: {first['msg']}") from None
    return options


def check_early(argv: list[str]) -> None:
    """Refuse a bad policy before vLLM is imported, which takes seconds. Raises UsageError."""
    quick = ArgumentParser(prog="kvserve serve", add_help=False, allow_abbrev=False)
    add_flags(quick)
    options_of(quick.parse_known_args(argv)[0])
