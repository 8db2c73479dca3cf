"""vLLM's request bodies with one more field."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

KVPolicyField = Annotated[
    # Not validated by pydantic: `kvserve.policy.request.parse` does, with messages and `param` of the contract.
    SkipValidation[str | dict[str, Any] | None],
    Field(
        description="How the KV cache of this request is compressed: 'name', 'name:budget', or an object "
        '{"name": ..., "budget": ..., parameters of the policy}. budget: a whole number >= 1 is tokens kept '
        "per layer, a fraction in (0, 1] the share of the tokens seen. 'full' means no compression. Beats "
        "the header X-KV-Policy, which beats the server's default. GET /v1/kv/policies lists the policies.",
        examples=["snapkv:0.25", {"name": "streaming", "budget": 256, "sinks": 4}],
    ),
]


class HasPolicy(BaseModel):
    """Mixed into each request body."""

    model_config = ConfigDict(extra="allow")  # so that a misspelt field is seen; those that are nobody's stay ignored

    XARGS: ClassVar[str] = "vllm_xargs"
    """What the client calls the arguments that vLLM hands on to the engine."""

    # vLLM caches each class's own field names here, to log the unknown ones; do not inherit the cache.
    field_names: ClassVar[set[str] | None] = None

    kv_policy: KVPolicyField = None

    def unread(self) -> dict[str, Any]:
        """The fields of the body that nobody has asked for, and the engine's arguments under the client's name."""
        return {**(self.model_extra or {}), self.XARGS: getattr(self, "vllm_xargs", None)}


class KVChatCompletionRequest(HasPolicy, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    field_names: ClassVar[set[str] | None] = None


class KVCompletionRequest(HasPolicy, CompletionRequest):
    """Body of /v1/completions."""

    field_names: ClassVar[set[str] | None] = None


class KVResponsesRequest(HasPolicy, ResponsesRequest):
    """Body of /v1/responses."""

    field_names: ClassVar[set[str] | None] = None


class KVBatchChatCompletionRequest(HasPolicy, BatchChatCompletionRequest):
    """Body of /v1/chat/completions/batch. vLLM copies all of it into one chat request per conversation."""

    field_names: ClassVar[set[str] | None] = None

    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None = Field(
        default=None, description=ChatCompletionRequest.model_fields["vllm_xargs"].description
    )


class KVMessagesRequest(HasPolicy, AnthropicMessagesRequest):
    """Body of /v1/messages. vLLM makes a chat request of it, with the same `vllm_xargs`."""


class KVGenerateRequest(HasPolicy, GenerateRequest):
    """Body of /inference/v1/generate, where the sampling parameters are the engine's own."""

    XARGS: ClassVar[str] = "sampling_params.extra_args"

    @property
    def vllm_xargs(self) -> dict[str, Any] | None:
        return self.sampling_params.extra_args

    @vllm_xargs.setter
    def vllm_xargs(self, value: dict[str, Any] | None) -> None:
        self.sampling_params.extra_args = value

    def unread(self) -> dict[str, Any]:
        given = dict.fromkeys(self._sampling_params_provided_keys or ())
        return {**super().unread(), "sampling_params": given}
