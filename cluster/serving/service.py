"""``herd serve``: the HTTP ingress in front of the Generator replicas, from start to drain.

One ingress replica sees every request, so it can count what is in progress and turn away what is
too much; it computes nothing. The replicas behind it are those of ``cluster.serving.deployment``.
"""

import asyncio
import contextlib
import functools
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.progress import say
from cluster.serving.application import QUIET_LOGGING, applications_in_use, deployed, require_http
from cluster.serving.deployment import generator_deployment, listen_on_loopback, with_settled_precision
from cluster.serving.engine_client import EngineClient
from cluster.serving.http_guard import Access, access_for, is_loopback
from cluster.session import Cluster, connect, quiet_libraries
from gpt_core.errors import ResourceError
from gpt_core.settings import ServeJob, ServeSettings
from gpt_core.storage import location

APPLICATION = "herd-serve"
_MAX_ONGOING_REQUESTS = 4096
_DRAIN_POLL_SECONDS = 0.1
_WAKE_SECONDS = 1.0
_CALL_SECONDS = 5.0
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_EXAMPLE = '{"prompt": "def main(", "max_tokens": 32}'


class Ingress:
    """The deployment that answers HTTP.

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
        self._app = build_app(api, access, [*more, *(inspecting.routes() if settings.page else ())])

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application; called by Ray Serve."""
        return self._app

    async def drain(self, seconds: float) -> int:
        """Take no more requests, wait for those in progress, and return how many completions are left."""
        self._admission.is_draining = True
        deadline = time.monotonic() + seconds
        while self._admission.in_progress and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        return self._admission.in_progress


def capacity_of(settings: ServeSettings) -> int:
    """Return how many completions may be in progress: one in every slot, and those that wait."""
    engine = settings.engine
    return (engine.max_replicas or engine.num_replicas) * engine.num_slots + settings.max_queued_completions


def serve_until_stopped(settings: ServeJob) -> str:
    """Serve a checkpoint until SIGTERM and return the summary; Ctrl-C drains likewise and stays a KeyboardInterrupt.

    Raises:
        CheckpointError: There is no whole checkpoint.
        ResourceError: The address is taken or needs a key, or there are too few CPUs or GPUs.
    """
    access = access_for(settings.host)
    served = resolve(settings)
    stopped = threading.Event()
    with connect(settings.cluster) as cluster:
        if cluster.address is None:
            _require_free(settings.host, settings.port)
        with (
            running(settings, served, access, cluster) as address,
            _linked(settings, served),
            _sigterm_sets(stopped),
        ):
            _announce(settings, served, address, cluster)
            while not stopped.wait(_WAKE_SECONDS):
                pass
    return f"served {served.checkpoint} at {address} until it was stopped"


@dataclass(frozen=True, slots=True)
class Served:
    """A checkpoint that was found and checked."""

    checkpoint: str
    facts: dict[str, Any]
    """The fields of ``completions_schema.ServedModel`` but precision, with the tokenizer's name for the tokenizer."""


def resolve(settings: ServeSettings) -> Served:
    """Find the checkpoint and read what the ingress needs to know of it.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    from gpt_core.training import checkpoint

    loaded = checkpoint.load(settings.checkpoint)
    digest = checkpoint.weights_digest(loaded.path)
    facts = {
        "name": settings.model_name,
        "tokenizer": loaded.tokenizer["name"],
        "window_tokens": loaded.shape.num_positions,
        "fingerprint": f"herd-{digest[:16]}",
        "checkpoint": digest,
        "created": int(time.time()),
    }
    return Served(str(loaded.path), facts)


@contextlib.contextmanager
def running(settings: ServeSettings, served: Served, access: Access, cluster: Cluster) -> Iterator[str]:
    """Serve while the body runs; yields the address. Afterwards requests in progress get ``drain_seconds``.

    Raises:
        ResourceError: The cluster runs Ray Serve at another address already, or has too few CPUs or GPUs.
    """
    quiet_libraries()
    engine = with_settled_precision(settings.engine, cluster)
    settings = settings.model_copy(update={"engine": engine})
    generator = generator_deployment(served.checkpoint, engine, cluster)
    application = ingress_deployment(generator, served, settings, access)
    start = functools.partial(_start_serve, settings.host, settings.port)
    with deployed(application, APPLICATION, "/", cluster, start) as handle:
        try:
            yield f"http://{_bracketed(settings.host)}:{settings.port}"
        finally:
            _drain(handle, settings.drain_seconds)


def ingress_deployment(generator: Any, served: Served, settings: ServeSettings, access: Access) -> Any:
    """Return the application: the ingress, bound to the deployment of the Generator behind it.

    Args:
        generator: That deployment.
        served: The checkpoint.
        settings: With the precision settled.
        access: Who may call.
    """
    from ray import serve

    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    )(serve.ingress()(Ingress))
    facts = {**served.facts, "precision": settings.engine.precision}
    return ingress.bind(generator, facts, settings, access)


def _start_serve(host: str, port: int) -> None:
    """Start Ray Serve's HTTP proxy on the head node; a Serve without applications makes way for it."""
    from ray import serve
    from ray.serve.context import _get_global_client

    def start() -> bool:
        options = {"host": host, "port": port}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET_LOGGING)
        client = _get_global_client()
        assert client is not None
        return (client.http_config.host, client.http_config.port) == (host, port) and bool(serve.status().proxies)

    if start():
        return
    applications = applications_in_use()
    if not applications:
        serve.shutdown()
        start()
        return
    require_http(f"{host}:{port}")
    raise ResourceError(
        f"{host}:{port}",
        f"a Ray Serve on this cluster that listens elsewhere, for {', '.join(applications)}",
        "one at this address",
        "stop those applications, or give --host and --port of the running one",
    )


def _require_free(host: str, port: int) -> None:
    """Raise ResourceError where the port cannot be listened on, before half a minute is spent on starting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}", error.strerror or str(error), "an address and port that are free", "choose another --port"
        ) from error


def _drain(handle: Any, seconds: float) -> None:
    say("stopping: requests in progress may finish; Ctrl-C again leaves them")
    left = handle.drain.remote(seconds).result(timeout_s=seconds + _CALL_SECONDS)
    if left:
        say(f"stopping: {left} completions were not finished within {seconds:g} s")


@contextlib.contextmanager
def _sigterm_sets(stopped: threading.Event) -> Iterator[None]:
    """Make SIGTERM, with which services are stopped, set the event."""
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _linked(settings: ServeSettings, served: Served) -> contextlib.AbstractContextManager[None]:
    """Let MLflow's run of the checkpoint link to the page meanwhile."""
    from cluster.tracking.served import linked_to_page
    from gpt_core.training import checkpoint

    if not settings.page:
        return contextlib.nullcontext()
    host = socket.gethostname() if settings.host in _EVERY_ADDRESS else _bracketed(settings.host)
    digest = checkpoint.weights_digest(served.checkpoint)
    return linked_to_page(location(served.checkpoint), digest, f"http://{host}:{settings.port}/")


def _announce(settings: ServeSettings, served: Served, address: str, cluster: Cluster) -> None:
    engine = settings.engine
    say(f"serving {served.checkpoint} as {settings.model_name!r}: {engine.num_replicas} x {engine.num_slots} slots")
    say(f"listening on {address} ({'this machine only' if is_loopback(settings.host) else 'API key required'})")
    if settings.page:
        say(f"a page to watch it think: {address}/")
    if cluster.address is None:
        say(f"metrics for Prometheus: {metrics_address()}")
    say(f"try: curl {address}/v1/completions -H 'Content-Type: application/json' -d '{_EXAMPLE}'; Ctrl-C stops")


def metrics_address() -> str:
    """Return where Ray's exporter of the only node answers Prometheus; the port is another at each start."""
    import ray

    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
