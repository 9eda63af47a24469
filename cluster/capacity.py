"""How many training workers the cluster has room for, by the nodes that answer."""

from dataclasses import dataclass
from typing import Any

PROBE_SECONDS = 3.0
"""Time to answer in which a node that is not busy starts a process."""


@dataclass(frozen=True, slots=True)
class Worker:
    """CPUs and GPUs that one worker takes of one node."""

    cpus: int
    gpus: int

    @property
    def resources(self) -> dict[str, float]:
        """Return them by Ray's names, those of zero left out."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def fits(self, room: dict[str, float]) -> int:
        """Return how many workers a room of resources holds."""
        return min(int(room.get(name, 0.0) // need) for name, need in self.resources.items())


def num_fitting(worker: Worker, probe_seconds: float | None) -> int:
    """Return how many more workers fit the free resources of the living nodes.

    Args:
        worker: What one of them takes.
        probe_seconds: Ask each node first, and count those that answer in time: Ray takes about 15 s to declare a
            crashed one dead. None believes Ray.
    """
    from ray._private.state import available_resources_per_node

    nodes = (answering_nodes(probe_seconds) if probe_seconds else living_nodes()) - draining_nodes()
    free = available_resources_per_node()
    return sum(worker.fits(free.get(node, {})) for node in nodes)


def living_nodes() -> set[str]:
    """Return the ids of nodes that Ray takes for alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def answering_nodes(probe_seconds: float = PROBE_SECONDS) -> set[str]:
    """Return the ids of nodes that run a task within some seconds."""
    return _answering(living_nodes(), probe_seconds)


def draining_nodes() -> set[str]:
    """Return the ids of nodes that their provider or an operator is about to take away."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def _answering(nodes: set[str], seconds: float) -> set[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: str) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return _answer.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote()

    _answer = ray.remote(_say_yes)
    asked = {ask(node): node for node in nodes}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for reference in late:
        ray.cancel(reference, force=True)
    return {asked[reference] for reference in ready if _has_value(reference)}


def _say_yes() -> bool:
    return True


def _has_value(reference: Any) -> bool:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError:
        return False
