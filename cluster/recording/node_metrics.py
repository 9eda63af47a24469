"""Load of the other nodes of a cluster, while they work for a job.

A node gets a sampler of its own, an actor that takes no CPU, as long as some of its CPUs or GPUs are in use:
one on an idle node would keep an autoscaler from taking the node away.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cluster.recording.system_metrics import SAMPLE_SECONDS, MachineLoad
from gpt_core.errors import ResourceError

_ANSWER_SECONDS = 1.0  # later answers are taken in the next round; a job's end waits no longer than this
_NOT_IN_NAMES = re.compile(r"[^\w.\-]")


@contextlib.contextmanager
def sampled_nodes(receive: Callable[[dict[str, float]], None], seconds: float = SAMPLE_SECONDS) -> Iterator[None]:
    """Hand samples of the other nodes to `receive` for the length of the block."""
    samplers = NodeSamplers(receive, seconds)
    try:
        yield
    finally:
        samplers.stop()


class NodeSamplers:
    """A thread that asks the samplers of all busy nodes but the driver's own, every `seconds`.

    Metrics are named system/NODE/..., NODE being the machine's host name, and the beginning of Ray's
    id of the node where two nodes share a name. A node that dies is left out from then on.

    Args:
        receive: Called from the thread with one node's sample.
        seconds: Time between two rounds.
    """

    def __init__(self, receive: Callable[[dict[str, float]], None], seconds: float) -> None:
        import ray

        self._receive, self._seconds = receive, seconds
        self._own = ray.get_runtime_context().get_node_id()
        self._names: dict[str, str] = {}  # by node id
        self._samplers: dict[str, Any] = {}
        self._asked: dict[Any, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="herd-node-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the samplers."""
        self._stopped.set()
        self._thread.join(timeout=2 * _ANSWER_SECONDS)
        for node in list(self._samplers):
            self._drop(node)

    def _run(self) -> None:
        from ray.exceptions import RayError

        while not self._stopped.wait(self._seconds):
            with contextlib.suppress(RayError, ResourceError):  # a lost head ends the job elsewhere, a full disk too
                self._follow_nodes()
                self._ask()
                self._take()

    def _follow_nodes(self) -> None:
        """Give each busy node a sampler, and take it from those that are idle or gone."""
        import ray

        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node in alive.values():
            self._name(node)
        busy = {node for node in _busy_nodes(alive) if node != self._own}
        for node in set(self._samplers) - busy:
            self._drop(node)
        for node in busy - set(self._samplers):
            self._samplers[node] = _start_sampler(node, self._names[node])

    def _name(self, node: dict[str, Any]) -> None:
        if node["NodeID"] in self._names:
            return
        host = _NOT_IN_NAMES.sub("-", node["NodeManagerHostname"])[:100] or "node"
        taken = host in self._names.values()
        self._names[node["NodeID"]] = f"{host}-{node['NodeID'][:6]}" if taken else host

    def _ask(self) -> None:
        waiting = set(self._asked.values())
        for node, sampler in self._samplers.items():
            if node not in waiting:
                self._asked[sampler.sample.remote()] = node

    def _take(self) -> None:
        import ray
        from ray.exceptions import RayError

        asked = list(self._asked)
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS) if asked else ([], [])
        for reference in ready:
            node = self._asked.pop(reference, "")  # stop() may be faster
            try:
                sample = ray.get(reference)
            except RayError:
                self._drop(node)
            else:
                self._receive(sample)

    def _drop(self, node: str) -> None:
        import ray

        self._asked = {asked: other for asked, other in self._asked.items() if other != node}  # it may get a new one
        sampler = self._samplers.pop(node, None)
        if sampler is not None:
            with contextlib.suppress(Exception):  # its node may be gone
                ray.kill(sampler)


def _busy_nodes(alive: dict[str, dict[str, Any]]) -> set[str]:
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()

    def is_busy(node: str) -> bool:
        total, left = alive[node]["Resources"], free.get(node, {})
        return any(total.get(name, 0.0) > left.get(name, 0.0) for name in ("CPU", "GPU"))

    return {node for node in alive if is_busy(node)}


def _start_sampler(node: str, name: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    sampler = ray.remote(MachineLoad).options(num_cpus=0, max_restarts=0, scheduling_strategy=strategy)
    return sampler.remote(name)
