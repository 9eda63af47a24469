"""``herd serve``: an ingress and the Generator replicas behind it, from start to drain."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.progress import say
from cluster.serving.application import applications_in_use, deployed, is_gone, is_own
from cluster.serving.deployment import generator_deployment, with_settled_precision
from cluster.serving.http_guard import Access, access_for, is_loopback
from cluster.serving.http_server import listen
from cluster.serving.ingress import HEAD_NODE, ingress_deployment
from cluster.session import Cluster, connect
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.settings import ServeJob, ServeSettings
from gpt_core.storage import location

_WAKE_SECONDS = 1.0
_CALL_SECONDS = 5.0
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_EXAMPLE = '{"prompt": "def main(", "max_tokens": 32}'


def serve_until_stopped(settings: ServeJob) -> str:
    """Serve a checkpoint until SIGTERM, or until another job takes the service's place; return the summary for people.

    Ctrl-C drains like SIGTERM and stays a KeyboardInterrupt.

    Raises:
        CheckpointError: There is no whole checkpoint.
        ResourceError: The address is taken or needs a key, or there are too few CPUs or GPUs.
        RunFailedError: Somebody else took the service down.
    """
    access = access_for(settings.host)
    served = resolve(settings)
    stopped = threading.Event()
    with (
        connect(settings.cluster) as cluster,
        contextlib.ExitStack() as links,  # taken back after the drain, which waits for nothing
        running(settings, served, access, cluster) as address,
        _sigterm_sets(stopped),
    ):
        head = _head_name()
        _announce(settings, served, address, cluster, head)
        links.enter_context(_linked(settings, served, head))
        end = _wait_for_end(application_name(settings.port), stopped)
    return f"served {served.checkpoint} at {address} until {end}"


def _wait_for_end(name: str, stopped: threading.Event) -> str:
    """Return why the service ends. That Ray does not answer, whose head may come back, is no reason.

    Raises:
        RunFailedError: It is gone.
    """
    from ray.exceptions import RayError

    while not stopped.wait(_WAKE_SECONDS):
        with contextlib.suppress(RayError):
            was_taken_down = is_gone(name)
            if not is_own(name):
                return "another job took its place"
            if was_taken_down:
                remedy = "look for who ran `serve shutdown` or `serve delete`, and run this again"
                raise RunFailedError(name, "no such application any more", "the one this command deployed", remedy)
    return "it was stopped"


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
        ResourceError: The address is taken, or the cluster has too few CPUs or GPUs.
    """
    name = application_name(settings.port)
    if name not in applications_in_use():
        _require_free(settings.host, settings.port, cluster)
    engine = with_settled_precision(settings.engine, cluster)
    settings = settings.model_copy(update={"engine": engine})
    generator = generator_deployment(served.checkpoint, engine, cluster)
    application = ingress_deployment(generator, served.facts, settings, access, listens=True)
    with deployed(application, name, cluster) as handle:
        try:
            yield f"http://{_bracketed(settings.host)}:{settings.port}"
        finally:
            _drain(name, handle, settings.drain_seconds)


def application_name(port: int) -> str:
    """Return the name that the service at a port has in Ray Serve."""
    return f"herd-serve-{port}"


def _require_free(host: str, port: int, cluster: Cluster) -> None:
    """Raise ResourceError where the ingress could not listen, before its replicas are started."""
    import ray

    if cluster.address is None:
        error: Any = _error_of_listening(host, port)
    else:
        ask: Any = ray.remote(num_cpus=0, max_calls=1, resources=HEAD_NODE)(_error_of_listening)
        error = ray.get(ask.remote(host, port))
    if error:
        raise ResourceError(f"{host}:{port}", error, "an address and port that are free", "choose another --port")


def _error_of_listening(host: str, port: int) -> str | None:
    try:
        listen(host, port).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _drain(name: str, handle: Any, seconds: float) -> None:
    """Let requests in progress finish, unless the service is gone or another's; a failure does not change its end."""
    from ray.exceptions import RayError

    try:
        if is_gone(name) or not is_own(name):
            return
        say("stopping: requests in progress may finish; Ctrl-C again leaves them")
        left = handle.drain.remote(seconds).result(timeout_s=seconds + _CALL_SECONDS)
    except (RayError, TimeoutError) as error:
        say(f"stopping: what became of requests in progress is not known: {type(error).__name__}")
        return
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


def _linked(settings: ServeSettings, served: Served, head: str) -> contextlib.AbstractContextManager[None]:
    """Let MLflow's run of the checkpoint link to the page meanwhile, where people can open it."""
    from cluster.tracking.served import linked_to_page
    from gpt_core.training import checkpoint

    if not settings.page or (is_loopback(settings.host) and head != socket.gethostname()):
        return contextlib.nullcontext()
    host = head if settings.host in _EVERY_ADDRESS else _bracketed(settings.host)
    digest = checkpoint.weights_digest(served.checkpoint)
    return linked_to_page(location(served.checkpoint), digest, f"http://{host}:{settings.port}/")


def _announce(settings: ServeSettings, served: Served, address: str, cluster: Cluster, head: str) -> None:
    engine = settings.engine
    say(f"serving {served.checkpoint} as {settings.model_name!r}: {engine.num_replicas} x {engine.num_slots} slots")
    place, machine = ("", "this machine") if head == socket.gethostname() else (f" at {head}", "that machine")
    say(f"listening on {address}{place} ({f'{machine} only' if is_loopback(settings.host) else 'API key required'})")
    if settings.page:
        say(f"a page to watch it think{place}: {address}/")
    if cluster.address is None:
        say(f"metrics for Prometheus: {metrics_address()}")
    say(f"try{place}: curl {address}/v1/completions -H 'Content-Type: application/json' -d '{_EXAMPLE}'; Ctrl-C stops")


def _head_name() -> str:
    """Return the host name of the node on which the ingress listens."""
    import ray

    (head,) = [node for node in ray.nodes() if node["Alive"] and HEAD_NODE.keys() <= node["Resources"].keys()]
    return head["NodeManagerHostname"]


def metrics_address() -> str:
    """Return where Ray's exporter of the only node answers Prometheus; the port is another at each start."""
    import ray

    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
