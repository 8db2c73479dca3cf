"""Start-up options, carried in vLLM's `--additional-config '{"kvserve": {...}}'`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class KVOptions(BaseModel):
    """How this server was started; the same object in every process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str | None = Field(None, description="Policy of requests that name none")
    groups: int | None = Field(
        None,
        ge=1,
        description="Layer groups with block tables of their own, for policies whose budgets differ by layer; left "
        "out, as few as the policies need",
    )
    resident_tokens: int | None = Field(
        None,
        ge=1,
        description="Start even if the pool holds only this many tokens of one request, not "
        "max-model-len; requests that cannot fit are refused one by one",
    )
    calibration: str | None = Field(
        None,
        description="File made by `kvserve calibrate`, for the policies that need one; without it, "
        "kvserve/calibration.safetensors in the model's folder if there is one",
    )
    canary: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share, 0 to 1, of the finished compressed requests that are replayed at full cache while the "
        "engine is idle; which part of a greedy answer's tokens the full cache would have chosen too is "
        "kvserve_quality_agreement on /metrics",
    )
    trace: bool = Field(False, description="Tests only: keep every selection in the worker")

    @classmethod
    def of(cls, vllm_config: Any) -> "KVOptions":
        """The options of a running vLLM; raises pydantic's ValidationError for unknown ones."""
        extra = getattr(vllm_config, "additional_config", None)
        found = extra.get("kvserve", {}) if isinstance(extra, dict) else {}
        return cls(**found)


def switched_on(vllm_config: Any) -> bool:
    """Whether this engine runs kvserve's scheduler."""
    cls = vllm_config.scheduler_config.scheduler_cls
    name = cls if isinstance(cls, str) else getattr(cls, "__module__", "")
    return name.startswith("kvserve.")
