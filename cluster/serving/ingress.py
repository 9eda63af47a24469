"""The ingress of a service: the deployment that takes HTTP requests and hands them to the Generator replicas.

One ingress replica sees every request, so it can count what is in progress and turn away what is
too much; it computes nothing. The replicas behind it are those of ``cluster.serving.deployment``.
"""

import asyncio
import time
from typing import Any

from cluster.serving.deployment import MAX_ONGOING_REQUESTS, listen_on_loopback
from cluster.serving.engine_client import EngineClient
from cluster.serving.http_guard import Access
from gpt_core.settings import ServeSettings

_DRAIN_POLL_SECONDS = 0.1
HEAD_NODE = {"node:__internal_head__": 0.001}
"""Resources that Ray gives the head node of a cluster alone."""


class Ingress:
    """The ingress behind Ray Serve's own HTTP proxies, as ``serve deploy`` starts them.

    Args:
        generator: Handle of the Generator deployment.
        facts: The served model without its tokenizer, which is loaded here.
        settings: Limits.
        access: Who may call.
    """

    def __init__(self, generator: Any, facts: dict[str, Any], settings: ServeSettings, access: Access) -> None:
        from cluster.serving.completions_schema import ServedModel
        from cluster.serving.generate_api import GenerateApi
        from cluster.serving.http_api import Admission, Api, Limits, build_app
        from cluster.serving.http_metrics import Counted
        from cluster.serving.inspect_api import InspectApi
        from cluster.serving.inspecting import InspectClient
        from gpt_core.tokens.tokenizer import load_tokenizer

        listen_on_loopback()
        model = ServedModel(**{**facts, "tokenizer": load_tokenizer(facts["tokenizer"])})
        capacity = capacity_of(settings)
        limits = Limits(settings.max_request_bytes, min(settings.max_completions, capacity))
        self._admission = Admission(capacity)
        client = EngineClient(generator)
        api = Api(model, client, limits, self._admission)
        more = GenerateApi(client, limits, self._admission).routes()
        inspecting = InspectApi(model, InspectClient(generator), self._admission, settings.max_request_bytes)
        self._app = Counted(build_app(api, access, [*more, *(inspecting.routes() if settings.page else ())]))

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application; called by Ray Serve."""
        return self._app


class ListeningIngress(Ingress):
    """The ingress of `herd serve`, which listens itself: a proxy before it would cost each request some 6 ms."""

    async def __init__(self, generator: Any, facts: dict[str, Any], settings: ServeSettings, access: Access) -> None:  # type: ignore[misc] - Ray Serve awaits it
        from cluster.serving.http_server import HttpServer

        super().__init__(generator, facts, settings, access)
        self._server = HttpServer(self._app, settings.host, settings.port)

    async def drain(self, seconds: float) -> int:
        """Take no more requests, wait for those in progress, and return how many completions are left."""
        self._admission.is_draining = True
        deadline = time.monotonic() + seconds
        while self._admission.in_progress and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        left = self._admission.in_progress
        await self._server.close()
        return left

    def check_health(self) -> None:
        """Raise where the HTTP server has ended by itself, so that Ray Serve replaces this replica."""
        if not self._admission.is_draining:
            self._server.check()


def capacity_of(settings: ServeSettings) -> int:
    """Return how many completions may be in progress: one in every slot, and those that wait."""
    engine = settings.engine
    return (engine.max_replicas or engine.num_replicas) * engine.num_slots + settings.max_queued_completions


def ingress_deployment(
    generator: Any, facts: dict[str, Any], settings: ServeSettings, access: Access, *, listens: bool
) -> Any:
    """Return the application: the ingress, bound to the deployment of the Generator behind it.

    Args:
        generator: That deployment.
        facts: The served model.
        settings: With the precision settled.
        access: Who may call.
        listens: Whether it listens itself, on the head node, or is called by Ray Serve's HTTP proxies.
    """
    from ray import serve

    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": HEAD_NODE if listens else {}},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    )(ListeningIngress if listens else serve.ingress()(Ingress))
    return ingress.bind(generator, {**facts, "precision": settings.engine.precision}, settings, access)
