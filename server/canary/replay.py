"""A canary's replay: one prefill of prompt and answer with the full cache, no decoding.

For each token of the answer the engine says how likely it is with the full cache, and how likely the first choice is.
That is a judgement of greedy requests only: a token that was drawn need not be anyone's first choice.

The replay does not pass vLLM's front end, so that it is not in vLLM's metrics, logs and traces.
"""

import sys
import time
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest

from kvserve.channels import Asked
from kvserve.policy import request as wire
from kvserve.policy.admission import fitting, room
from kvserve.policy.errors import PolicyError
from kvserve.policy.registry import get
from kvserve.policy.salts import unsalted
from kvserve.startup.facts import facts_of

UNFIT = ("sampled", "constrained", "multimodal", "too_long", "empty")
"""Why a request is not replayed; see `unfit`."""

_NEUTRAL = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "bad_words": [],
    "watermarking": False,
}
_CONSTRAINTS = (
    "structured_outputs",
    "logit_bias",
    "allowed_token_ids",
    "thinking_token_budget",
    "trace_decode_token_ids",
)


class Replay(NamedTuple):
    """What is asked of the engine, and whom the answer is about."""

    policy: str
    request: EngineCoreRequest  # its prompt: the client's, and the answer
    prompt: int  # tokens of the client's prompt

    @property
    def tokens(self) -> int:
        return len(self.request.prompt_token_ids or ())

    def again(self) -> "Replay":
        """The same with a new id, so that a late answer is not taken for the new one's."""
        return self._replace(request=msgspec.structs.replace(self.request, request_id=f"kvserve-canary-{uuid4().hex}"))


class Judgement(NamedTuple):
    """Of one answer, shares of its tokens."""

    agreement: float  # the full cache's first choice too, each after the same tokens
    same_prefix: float  # before the first that is not: as the full cache would have answered by itself


def refusal(vllm_config: Any) -> str | None:
    """Why this server cannot have a canary; None if it can."""
    parallel = vllm_config.parallel_config
    if parallel._api_process_count > 1:
        return (
            f"it needs one API process, as none sees the requests of the others; this server has "
            f"{parallel._api_process_count}: start it with --api-server-count 1"
        )
    if parallel.data_parallel_size > 1 and parallel.local_engines_only:
        return "engines that other servers' engines keep step with are idle only when those are, which no server sees"
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        return "with --kv-sharing-fast-prefill the log-probabilities of a prompt are wrong"
    return None


def unfit(request: EngineCoreRequest, generated: list[int], vllm_config: Any) -> str | None:
    """Why a finished request cannot be judged by a replay, one of UNFIT; None if it can."""
    params = request.sampling_params
    if not generated:
        return "empty"
    if params is None or params.sampling_type != SamplingType.GREEDY:
        return "sampled"
    if _constrained(params) or vllm_config.model_config.logits_processors:
        return "constrained"
    if request.mm_features or request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "multimodal"
    try:
        fitting(get("full")(), len(_tokens(request, generated, vllm_config)), 1, facts_of(vllm_config))
    except PolicyError:
        return "too_long"
    return None


def _constrained(params: SamplingParams) -> bool:
    """Whether the tokens chosen were not simply the likeliest ones."""
    shaped = any(getattr(params, name) not in (neutral, None) for name, neutral in _NEUTRAL.items())
    return shaped or any(getattr(params, name) is not None for name in _CONSTRAINTS)


def _tokens(request: EngineCoreRequest, generated: list[int], vllm_config: Any) -> list[int]:
    """Prompt and answer; without the answer's last token where the model has no room for one more."""
    return [*(request.prompt_token_ids or ()), *generated][: vllm_config.model_config.max_model_len - 1]


def replay_of(request: EngineCoreRequest, generated: list[int], vllm_config: Any) -> Replay:
    """For a finished request that is not `unfit`; keeps its adapter, its cache salt and its engine."""
    text = Asked.of(request.sampling_params).policy or "full"
    prompt = len(request.prompt_token_ids or ())
    policy = wire.built(text, facts_of(vllm_config), prompt)
    question = msgspec.structs.replace(
        request,
        prompt_token_ids=_tokens(request, generated, vllm_config),
        sampling_params=_params(prompt),
        arrival_time=time.time(),
        cache_salt=unsalted(request.cache_salt, policy.salt),
        priority=sys.maxsize,  # the last, where --scheduling-policy is priority
        trace_headers=None,
        session_id=None,
        kv_hints=None,
    )
    return Replay(policy.name, question, prompt)


def _params(prompt: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=1,
        detokenize=False,
        watermarking=False,
        skip_reading_prefix_cache=False,
        extra_args=Asked(judged=prompt).into(),
    )


def warm_ups(vllm_config: Any) -> list[Replay]:
    """Replays of no request, for the start: vLLM then compiles the counting of ranks, which takes seconds."""
    longest = vllm_config.model_config.max_model_len
    most = min(longest, room(facts_of(vllm_config), longest)) - 1
    return [_warm_up(min(tokens, most)) for tokens in (wire.CANARY_CHUNK + 44, wire.CANARY_CHUNK + 2)]


def _warm_up(tokens: int) -> Replay:
    request = EngineCoreRequest(
        request_id="",
        prompt_token_ids=[0] * tokens,
        mm_features=None,
        sampling_params=_params(1),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return Replay("full", request, 1).again()


def judged(replay: Replay, output: EngineCoreOutput) -> Judgement | None:
    """What the engine's answer says; None if it is none. Of equally likely tokens each is a first choice."""
    found, answered = output.new_prompt_logprobs_tensors, len(replay.request.prompt_token_ids or ()) - replay.prompt
    if found is None or answered < 1:
        return None
    # The last row is about the last token; the first, on the V2 runner, about the first behind a cached prefix.
    chosen, best = found.logprobs[-answered:].unbind(dim=1)
    same = (chosen >= best).tolist()
    return Judgement(sum(same) / len(same), [*same, False].index(False) / len(same))
