"""What the routes of one app share: the choice of policies, the ledger, the board."""

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from kvserve.policy.errors import PolicyError
from kvserve.startup.options import KVOptions, switched_on
from server.announcement import announce
from server.canary.adapters import Adapters
from server.canary.canary import Canary
from server.http import places
from server.http import stream_start as opening
from server.http.choice import Choice
from server.http.ledger import Ledger
from server.metrics.board import Board, board


@dataclass
class Service:
    """Made once the engine is up; lives in `app.state.kvserve`."""

    choice: Choice
    board: Board
    options: KVOptions
    ledger: Ledger = field(default_factory=Ledger)
    canary: Canary | None = None
    engine_client: Any = None  # vLLM's AsyncLLM, if its engines are kvserve's

    @classmethod
    def of(cls, request: Request) -> "Service":
        service: Service = request.app.state.kvserve
        return service

    @classmethod
    def over(cls, engine_client: Any, state: Any) -> "Service":
        """For vLLM's AsyncLLM and the app's state. Raises PolicyError for a default policy that cannot be served."""
        config = engine_client.vllm_config
        on = switched_on(config)
        options = KVOptions.of(config) if on else KVOptions.model_validate({})
        facts = _facts(config) if on else None
        service = cls(Choice(options, facts), board, options)
        announce(facts)
        board.serves(config, on)
        if on:
            service.engine_client = engine_client
            service.ledger.watch(engine_client.output_processor)
            _trace(engine_client.output_processor, service.ledger)
            opening.watch(engine_client.output_processor)
            places.watch(state.online_renderer, board.reject)
            _observe(board)
            _guard(service.ledger)
            if options.canary:
                service.canary = _canary(engine_client, options.canary, Adapters(state))
                board.findings = service.canary.findings
        return service


def _facts(vllm_config: Any) -> Any:
    from kvserve.engine.frontend import facts  # imports vLLM's engine, which a server without kvserve does not need

    return facts(vllm_config)


def _canary(engine_client: Any, rate: float, adapters: Adapters) -> Canary:
    """Raises PolicyError if this server cannot have one."""
    from server.canary.replay import refusal
    from server.canary.tap import ClientEngine, Tap

    if (why := refusal(engine_client.vllm_config)) is not None:
        raise PolicyError(f"no canary (--kv-canary {rate:g}): {why}", reason="unsupported")
    canary = Canary(rate, ClientEngine(engine_client, adapters))
    Tap(engine_client, canary)
    return canary


def _trace(output_processor: Any, ledger: Ledger) -> None:
    if output_processor.tracing_enabled:
        from server.http.tracing import attach  # imports OpenTelemetry, which vLLM needs for nothing else

        attach(output_processor, ledger)


def _observe(to: Board) -> None:
    """Count what kvserve's half of the engine's front end refuses."""
    from kvserve.engine.frontend import observers

    if to.reject not in observers:
        observers.append(to.reject)


def _guard(ledger: Ledger) -> None:
    """Refuse what only we may set, on routes that are not ours too."""
    from kvserve.engine.frontend import guards

    guards[:] = [ledger.guard]
