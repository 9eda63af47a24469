"""Ray Serve deployments of a checkpoint: one engine a replica.

`herd serve` puts an HTTP ingress before the replicas (``cluster.serving.http_api``); `herd generate`
calls them through a handle and starts no HTTP server at all.
"""

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.capacity import Worker
from cluster.cpu_allocator import GLIBC_TUNABLES
from cluster.progress import say
from cluster.serving.application import deployed
from cluster.serving.replica_scaling import SAMPLES, replica_options
from cluster.session import Cluster
from gpt_core.errors import ResourceError, UserError
from gpt_core.generation.request import GenerationRequest, TokenEvent
from gpt_core.settings import EngineSettings

if TYPE_CHECKING:
    from gpt_core.generation.engine import EngineStatistics
    from gpt_core.inspection.inspection import Query

GENERATOR = "Generator"
# Ray Serve's router collapses when callers hold more calls in flight than this (its default is 5);
# callers bound themselves far below.
MAX_ONGOING_REQUESTS = 4096
_PRECISION_SECONDS = 1800.0  # as long as a job waits for nodes
_CPU_VARIABLES = {"GLIBC_TUNABLES": GLIBC_TUNABLES}


class Generator:
    """One replica: a checkpoint, an engine and its loop.

    Args:
        checkpoint: Path of one checkpoint folder that every node can read.
        settings: Slots, threads, device and precision; the device is "cpu" or "gpu", as it was reserved.
        prefill_chunks: Prompt chunks a step stores; None for the engine's own few, which keep streams fluent.
    """

    def __init__(self, checkpoint: str, settings: EngineSettings, prefill_chunks: int | None = None) -> None:
        # Imported here: the driver that only describes the deployment needs no torch.
        import torch

        from cluster.serving.engine_loop import EngineLoop
        from cluster.serving.engine_metrics import report_metrics
        from cluster.serving.inspecting import CheckpointInspector
        from gpt_core.generation.engine import Engine, EngineOptions
        from gpt_core.tokens.tokenizer import load_tokenizer
        from gpt_core.training import checkpoint as checkpoints

        device = _settled_device(settings)
        listen_on_loopback()
        torch.set_num_threads(settings.threads_per_replica)
        loaded = checkpoints.load(checkpoint)
        self.tokenizer = load_tokenizer(loaded.tokenizer["name"])
        options = EngineOptions(slots=settings.num_slots, precision=settings.precision, device=device)
        options = replace(options, prefill_chunks=prefill_chunks or options.prefill_chunks)
        self._loop = EngineLoop(Engine(loaded.weights, loaded.shape, self.tokenizer, options))
        report_metrics(self._loop)
        self._inspector = CheckpointInspector(str(loaded.path), self.tokenizer, device)

    async def complete(self, requests: list[GenerationRequest]) -> list[list[Any]]:
        """Return the finished samples of every request, in the requests' order."""
        return list(await asyncio.gather(*(self._loop.complete(request) for request in requests)))

    async def stream(self, requests: list[GenerationRequest]) -> AsyncGenerator[list[TokenEvent], None]:
        """Yield what was computed of the requests since the last time; closing the stream cancels them."""
        async with contextlib.aclosing(self._loop.stream(requests)) as batches:
            async for batch in batches:
                yield batch

    async def statistics(self) -> "EngineStatistics":
        """Return where the engine stands."""
        return self._loop.statistics()

    async def inspect(self, query: "Query") -> dict[str, Any] | UserError:
        """Return what the model computes for a prompt, or the mistake in the query."""
        return await self._inspector.inspect(query)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the number of replicas follows; called by Ray Serve."""
        now = self._loop.statistics()
        return {SAMPLES: float(now.num_waiting + now.num_slots_in_use)}

    def check_health(self) -> None:
        """Raise the engine's failure, so that Ray Serve replaces this replica."""
        if self._loop.failure:
            raise self._loop.failure


def _settled_device(settings: EngineSettings) -> str:
    """Return torch's name of the device that was reserved for this replica."""
    import torch

    if settings.device != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ResourceError("engine.device", "no GPU in this process", "one a replica", "use device cpu")
    return "cuda"


def listen_on_loopback() -> None:
    """Keep Ray Serve's own server of this replica off the network; to be called before Ray Serve starts it.

    It unpickles whatever it is sent and would listen on every interface. Nothing is sent to it: calls between
    deployments are calls of actors, unless RAY_SERVE_USE_GRPC_BY_DEFAULT is set.
    """
    from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT

    if RAY_SERVE_USE_GRPC_BY_DEFAULT:
        return
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add_port(server, "127.0.0.1:0")


def with_settled_precision(settings: EngineSettings, cluster: Cluster) -> EngineSettings:
    """Return the settings with "auto" settled for all replicas: on nodes of two kinds each would choose for itself.

    Raises:
        ResourceError: If the cluster has fewer CPUs or GPUs than the replicas need, or no node of it has those of one.
    """
    if settings.precision != "auto":
        return settings
    cpus, gpus = _replica_resources(settings, cluster)
    chosen = _chosen_precision(gpus) if cluster.address is None else _precision_of_a_node(Worker(cpus, gpus))
    return settings.model_copy(update={"precision": chosen})


def _precision_of_a_node(replica: Worker) -> str:
    """Ask a node that a replica may run on; another one if it dies meanwhile."""
    import ray
    from ray.exceptions import GetTimeoutError, NodeDiedError, TaskUnschedulableError

    give_up = time.monotonic() + _PRECISION_SECONDS
    while True:
        answer = _ask_for_precision(replica)
        try:
            return ray.get(answer, timeout=max(0.0, give_up - time.monotonic()))
        except (TaskUnschedulableError, NodeDiedError):
            time.sleep(1.0)  # Ray took the node for alive for some seconds after its death, no longer
        except GetTimeoutError as error:
            ray.cancel(answer, force=True)
            raise ResourceError(
                "engine.precision auto",
                f"no answer of a node with {replica.cpus} CPUs and {replica.gpus} GPUs in {_PRECISION_SECONDS:g} s",
                "a node that has those of one replica",
                "lower engine.threads_per_replica, look at `ray status` on the head, or set the precision",
            ) from error


def _ask_for_precision(replica: Worker) -> Any:
    """Ask one of the nodes that are large enough, and return the reference of its answer.

    Nothing of it is taken: the replicas that are about to be replaced may hold all there is. Only where no node is
    large enough yet is one asked of Ray, which may add it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(**options: Any) -> Any:
        return ray.remote(max_calls=1, **options)(_chosen_precision).remote(replica.gpus)

    nodes = (node["NodeID"] for node in ray.nodes() if node["Alive"] and replica.fits(node["Resources"]))
    if (node := next(nodes, None)) is not None:
        return ask(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    say(f"waiting for a node with {replica.cpus} CPUs and {replica.gpus} GPUs")
    return ask(num_cpus=replica.cpus, num_gpus=replica.gpus)


def _chosen_precision(gpus: int) -> str:
    import torch

    from gpt_core.model.precision import can_compute_bf16

    return "bf16" if can_compute_bf16(torch.device("cuda" if gpus else "cpu")) else "fp32"


def _replica_resources(settings: EngineSettings, cluster: Cluster) -> tuple[int, int]:
    """Return the CPUs and GPUs of one replica, where the cluster has those of all."""
    gpus = int(settings.device == "gpu" or (settings.device == "auto" and cluster.num_gpus >= settings.num_replicas))
    cpus = settings.threads_per_replica
    cluster.require_cpus(settings.num_replicas * cpus, "engine.num_replicas x engine.threads_per_replica")
    if settings.device == "gpu" and cluster.address is None:  # no node will come
        cluster.require_gpus(settings.num_replicas, "engine.num_replicas with engine.device gpu")
    return cpus, gpus


def generator_deployment(
    checkpoint: str, settings: EngineSettings, cluster: Cluster, prefill_chunks: int | None = None
) -> Any:
    """Return the bound deployment of a checkpoint, ready for ``serve.run``.

    Raises:
        ResourceError: If the cluster has fewer CPUs or GPUs than the replicas need.
    """
    from ray import serve

    cpus, gpus = _replica_resources(settings, cluster)
    options = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cpus), **({} if gpus else _CPU_VARIABLES)}},
    }
    deployment = serve.deployment(
        name=GENERATOR,
        **replica_options(settings),
        ray_actor_options=options,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=2,
    )(Generator)
    settled = settings.model_copy(update={"device": "gpu" if gpus else "cpu"})
    return deployment.bind(checkpoint, settled, prefill_chunks)


@contextlib.contextmanager
def handles_only(checkpoint: str, settings: EngineSettings, cluster: Cluster, app_name: str) -> Iterator[Any]:
    """Deploy a checkpoint without an HTTP server while the body runs; yields the handle."""
    # Nobody waits for a next token: prompts are stored as soon as there are slots for them.
    application = generator_deployment(checkpoint, settings, cluster, prefill_chunks=settings.num_slots)
    with deployed(application, app_name, cluster) as handle:
        yield handle
