"""vLLM's request bodies with one more field."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, SkipValidation
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

KVPolicyField = Annotated[
    # Not validated by pydantic: `kvserve.request.parse` does, with messages and `param` of the contract.
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

    # vLLM caches each class's own field names here, to log the unknown ones; do not inherit the cache.
    field_names: ClassVar[set[str] | None] = None

    kv_policy: KVPolicyField = None


class KVChatCompletionRequest(HasPolicy, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    field_names: ClassVar[set[str] | None] = None


class KVCompletionRequest(HasPolicy, CompletionRequest):
    """Body of /v1/completions."""

    field_names: ClassVar[set[str] | None] = None


class KVResponsesRequest(HasPolicy, ResponsesRequest):
    """Body of /v1/responses."""

    field_names: ClassVar[set[str] | None] = None
