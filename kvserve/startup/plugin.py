"""Entry point of vLLM's general plug-ins: loaded in every process, it only makes kvserve available."""

import logging
from typing import Any

from kvserve.startup.guard import problem

logger = logging.getLogger(__name__)


def register() -> None:
    """Check requests in this process, and let engines say what they can hold.

    The engine itself is switched on by options, not by being installed.
    """
    if (why := problem()) is not None:
        logger.warning("kvserve is installed but cannot be used: %s", why)
        return
    from vllm.v1.engine.input_processor import InputProcessor

    from kvserve.engine.frontend import wrap
    from kvserve.evidence.observer import OF_MODELS
    from kvserve.startup import handshake

    handshake.install()
    if summary_maker not in OF_MODELS:
        OF_MODELS.append(summary_maker)

    if not hasattr(InputProcessor.process_inputs, "kv_wrapped"):
        InputProcessor.process_inputs = wrap(InputProcessor.process_inputs)


def summary_maker(runner: Any, attached: Any, head_offset: int) -> Any:
    """The observer that a model with summary tokens brings with it; None for other models."""
    from kvserve.summary.maker import SummaryMaker

    return SummaryMaker.of(runner, attached, head_offset)
