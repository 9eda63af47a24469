"""A cluster of three nodes, and where the lock on its Ray Serve is held.

Run as a script inside namespaces of its own by ``perform``.
"""

from pathlib import Path

from tests.chaos.namespaces import NODE, run_inside

_NUM_TIMES = 8


def perform(folder: Path) -> list[bool]:
    """Return whether the lock was on the driver's own node, for each of several times that it was taken."""
    return [line == "True" for line in run_inside(__name__, [], folder, folder / "log").split()[-_NUM_TIMES:]]


def _main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    from cluster.serving.application import _LOCK, _NAMESPACE, _alone
    from cluster.session import Cluster as HerdCluster

    cluster = Cluster(initialize_head=True, connect=True, head_node_args=NODE | {"include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    here = ray.get_runtime_context().get_node_id()
    for _ in range(_NUM_TIMES):
        with _alone(HerdCluster(str(cluster.address), 3, 0)):
            lock = ray.get_actor(_LOCK, _NAMESPACE)
            place = lock.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            print(ray.get(place) == here)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    _main()
