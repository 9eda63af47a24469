"""A cluster of two nodes in namespaces of its own, a tokenizing job on it, a node that dies and one that comes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.tokenizing import ROOT, Command

_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def perform(config: Path, output: Path, folder: Path) -> None:
    """Tokenize while a node is lost and another comes."""
    inside = 'ip link set lo up; exec "$@"'
    with tempfile.TemporaryDirectory(prefix="herd-", ignore_cleanup_errors=True) as ray_folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        # RAY_worker_niceness: Ray's default of 15 would starve the workers on a busy machine.
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray_folder, "HOME": str(folder)}
        done = subprocess.run(
            [*_UNSHARE, "bash", "-c", inside, "_", sys.executable, "-m", __name__, str(config), str(output)],
            env=kept | settings | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    log = output.with_name(f"{output.name}-log")
    assert done.returncode == 0, (log.read_text() if log.exists() else "") + done.stdout + done.stderr


def _main(config: Path, output: Path) -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_")}
    # Three actors of most of a CPU: two fit, the third waits for a node.
    pool = ["--pool.min_actors", "1", "--pool.max_actors", "3", "--pool.cpus_per_actor", "0.6"]
    command = Command(config, output, "--cluster.address", str(cluster.address), *pool, **environment)
    command.wait_until(lambda: command.num_shards >= 4)
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(**node)
    code = command.wait()
    command.end()
    cluster.shutdown()
    sys.exit(code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
