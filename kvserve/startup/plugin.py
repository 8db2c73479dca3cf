"""Entry point of vLLM's general plug-ins: loaded in every process, it only makes kvserve available."""

import logging

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
    from kvserve.startup import handshake

    handshake.install()

    if not hasattr(InputProcessor.process_inputs, "kv_wrapped"):
        InputProcessor.process_inputs = wrap(InputProcessor.process_inputs)
