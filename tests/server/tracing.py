"""A receiver of OpenTelemetry spans, as a collector is: OTLP over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ENVIRON = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "200"}
"""For the server that sends spans; the delay is in milliseconds."""


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    trace: str  # 32 hexadecimal digits
    attributes: dict[str, Any]


class Receiver:
    """All spans sent to `url` so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[ReceivedSpan] = []

    def of(self, trace: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.trace == trace]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        found = (span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans)
        self.spans += [ReceivedSpan(span.name, span.trace_id.hex(), _values(span.attributes)) for span in found]


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        receiver = Receiver(f"http://127.0.0.1:{http.server_port}/v1/traces")
        Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            http.shutdown()
