"""A cluster of two nodes in namespaces of its own, a tokenizing job on it, a node that dies and one that comes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import sys
from pathlib import Path

from tests.chaos.namespaces import NODE, run_inside
from tests.chaos.tokenizing import Command


def perform(config: Path, output: Path, folder: Path) -> None:
    """Tokenize while a node is lost and another comes."""
    log = output.with_name(f"{output.name}-log")
    run_inside(__name__, [str(config), str(output)], folder, log)


def _main(config: Path, output: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    second = cluster.add_node(**NODE)
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_")}
    # Three actors of most of a CPU: two fit, the third waits for a node.
    pool = ["--pool.min_actors", "1", "--pool.max_actors", "3", "--pool.cpus_per_actor", "0.6"]
    command = Command(config, output, "--cluster.address", str(cluster.address), *pool, **environment)
    command.wait_until(lambda: command.num_shards >= 4)
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(**NODE)
    code = command.wait()
    command.end()
    cluster.shutdown()
    sys.exit(code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
