"""A cluster whose only node for a replica dies unnoticed before it is asked for its precision, and one that comes.

Run as a script inside namespaces of its own by ``perform``.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chaos.namespaces import NODE, run_inside

_FOR_A_REPLICA: dict[str, Any] = NODE | {"num_cpus": 2}


def perform(folder: Path) -> str:
    """Return the precision that was settled."""
    return run_inside(__name__, [], folder, folder / "log").split()[-1]


def _main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    from cluster.serving.deployment import with_settled_precision
    from cluster.session import Cluster as HerdCluster
    from gpt_core.settings import EngineSettings

    cluster = Cluster(initialize_head=True, connect=True, head_node_args=NODE | {"include_dashboard": False})
    mortal = cluster.add_node(**_FOR_A_REPLICA)
    cluster.remove_node(mortal, allow_graceful=False)
    engine = EngineSettings(device="cpu", threads_per_replica=2)
    with ThreadPoolExecutor() as pool:
        settled = pool.submit(with_settled_precision, engine, HerdCluster(str(cluster.address), 3, 0))
        time.sleep(2)
        cluster.add_node(**_FOR_A_REPLICA)
    ray.shutdown()
    cluster.shutdown()
    print(settled.result().precision)  # noqa: T201


if __name__ == "__main__":
    _main()
