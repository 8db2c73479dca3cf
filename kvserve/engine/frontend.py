"""The API process's half: every request is checked before a token is made, whatever route it came by."""

import functools
from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from kvserve.channels import Asked
from kvserve.engine.failure import PolicyFailed
from kvserve.policy import Facts
from kvserve.policy import request as wire
from kvserve.policy.admission import fitting, refuse_pictures, refuse_prompt_logprobs, refuse_unplaced
from kvserve.policy.errors import PolicyError, PolicyFault, blaming
from kvserve.policy.request import Accepted
from kvserve.policy.salts import salted
from kvserve.startup.facts import facts_of as facts
from kvserve.startup.options import KVOptions, switched_on

CHECKING = "its request was being checked"

__all__ = ["defaults", "effective", "facts", "guards", "observers", "wrap"]

observers: list[Callable[[PolicyError | PolicyFault], None]] = []
"""Called with each refusal before it becomes an HTTP 400, and with each fault of a policy before it becomes a 500."""

guards: list[Callable[[dict[str, Any] | None], None]] = []
"""Called with the `extra_args` of each request before anything reads them; a server's raise PolicyError for ids that
it has not given out. Without a server the caller is trusted."""

defaults: dict[str, Any] = {}
"""What the sampling parameters of a request with a policy carry besides, where they do not say otherwise."""


def effective(extra_args: dict[str, Any] | None, vllm_config: Any) -> Accepted | None:
    """The policy of a request: its own, else the server's, else None. Raises PolicyError."""
    value = (extra_args or {}).get(wire.KEY)
    if not switched_on(vllm_config):
        if value is None or not wire.read(value).policy.compresses:
            return None
        raise PolicyError(
            f"kv_policy is {value!r}, but this server runs without kvserve; start it with `kvserve serve`",
            reason="unsupported",
        )
    value = value if value is not None else KVOptions.of(vllm_config).policy
    return None if value is None else wire.read(value)


def wrap(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `InputProcessor.process_inputs`, which all requests pass, with our checks behind it."""

    @functools.wraps(process_inputs)
    def checked(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            for guard in guards:
                guard(getattr(params, "extra_args", None))
            chosen = effective(getattr(params, "extra_args", None), self.vllm_config)
            if chosen is not None and chosen.policy.compresses and kwargs.get("resumable"):
                raise PolicyError("kv_policy cannot be used with streaming input", reason="unsupported")
            request = process_inputs(self, request_id, prompt, params, *args, **kwargs)
            if request.sampling_params is not None and switched_on(self.vllm_config):
                _settle(request, chosen, facts(self.vllm_config))
            return request
        except (PolicyError, PolicyFault) as error:
            for observer in observers:
                observer(error)
            if isinstance(error, PolicyFault):
                raise PolicyFailed(str(error)) from error
            raise VLLMValidationError(str(error), parameter=error.param) from None

    checked.kv_wrapped = True  # type: ignore[attr-defined]
    return checked


def _settle(request: Any, chosen: Accepted | None, known: Facts) -> None:
    """Check the request and write its policy, now canonical, into its own copy of the parameters."""
    params = request.sampling_params
    if wire.CANARY in (params.extra_args or {}):
        del params.extra_args[wire.CANARY]  # a client that would hide from the books
    tokens = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
    read, text = chosen or wire.read("full")
    with blaming(read.name, CHECKING):
        if request.mm_features:
            refuse_pictures(read, known)
        policy = wire.built(text, known, len(tokens))
        refuse_unplaced(policy, text_only=request.prompt_token_ids is not None and not request.mm_features)
        if params.prompt_logprobs is not None:
            refuse_prompt_logprobs(policy)
        params.max_tokens = fitting(policy, len(tokens), params.max_tokens, known)
        request.cache_salt = salted(request.cache_salt, policy.salt)
    if chosen is not None:
        params.extra_args = Asked(text).into({**defaults, **(params.extra_args or {})})
