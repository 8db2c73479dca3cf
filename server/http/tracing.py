"""OpenTelemetry: what became of a request's cache, as attributes of the span that vLLM makes of the request.

vLLM makes the span (`llm_request`) when a request ends, from times that it has kept. OpenTelemetry's hook for adding
to other people's spans is a SpanProcessor; which request a span is of, only the caller of vLLM's `do_tracing` knows.
"""

from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor

from kvserve.channels import Asked
from kvserve.engine import frontend
from server.http.ledger import Ledger

PREFIX = "kvserve."
ATTRIBUTES = (
    "policy",
    "budget",
    "logical_tokens",
    "kept_tokens",
    "evicted_tokens",
    "merged_tokens",
    "compactions",
)
"""Fields of a record, as in `usage.kv_cache` but of one sequence; a request without compression has none."""

_ending: ContextVar[dict[str, Any] | None] = ContextVar("kvserve_ending", default=None)
"""Record of the request whose span is being made."""


class CacheAttributes(SpanProcessor):
    """Adds to spans that are started while a record is set."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        record = _ending.get()
        if record is not None:
            span.set_attributes({PREFIX + name: record[name] for name in ATTRIBUTES if name in record})


def attach(output_processor: Any, ledger: Ledger) -> None:
    """Extend the spans of vLLM's OutputProcessor, which `ledger` must watch already."""
    stock = output_processor.do_tracing

    def do_tracing(engine_core_output: Any, req_state: Any, iteration_stats: Any) -> None:
        token = _ending.set(ledger.passing.get(engine_core_output.request_id))
        try:
            stock(engine_core_output, req_state, iteration_stats)
        finally:
            _ending.reset(token)

    output_processor.do_tracing = do_tracing
    provider: Any = trace.get_tracer_provider()  # the SDK's, since vLLM's tracing is on
    provider.add_span_processor(CacheAttributes())
    frontend.defaults |= Asked(call="").into()  # requests by routes that report no usage of ours have spans too
