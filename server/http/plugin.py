"""The entry point through which vLLM's API server loads kvserve's routes."""

from argparse import Namespace
from typing import Any

from fastapi import FastAPI

from server.canary import tap
from server.http import errors, inspection, prefixes, routes
from server.http import page as live
from server.http import shutdown as ending
from server.http.other_routes import Elsewhere
from server.http.service import Service


class KVEndpoints:
    """An `EndpointPlugin` (vllm/plugins/endpoint_plugins/interface.py).

    vLLM loads it only if VLLM_PLUGINS names `kvserve`, which `kvserve serve` sees to.
    """

    name = "kvserve"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Replace the generating routes that take a policy, add our own, and guard those that stay as they are."""
        routes.attach(app)
        inspection.attach(app)
        prefixes.attach(app)
        live.attach(app)
        errors.handle(app)
        app.add_middleware(Elsewhere)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Called when the engine is up. Raises PolicyError, which ends the server, for a bad default."""
        state.kvserve = service = Service.over(engine_client, state)
        if service.canary is not None:
            state.kvserve_canary = await tap.started(engine_client, service.canary)  # the loop holds tasks weakly
        ending.watch(engine_client, state)
