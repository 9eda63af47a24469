"""A cluster of two nodes in namespaces of its own, a training run on it, a node that dies and one that comes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.pretraining import ROOT, Command, seconds_to_next_step

# Long enough that the run is still at work when the second node has come.
LONGER = ["--train.num_steps", "800", "--train.checkpoint_every_steps", "20", "--train.num_workers", "[1, 2]"]
_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


@dataclass(frozen=True, slots=True)
class Story:
    """What happened: what the command said, and how long it stood still after the crash."""

    said: str
    seconds_after_crash: float


def perform(words: list[str], output: Path, folder: Path) -> Story:
    """Train with the words while the node is lost and found."""
    inside = 'ip link set lo up; exec "$@"'
    with tempfile.TemporaryDirectory(prefix="herd-", ignore_cleanup_errors=True) as ray_folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray_folder, "HOME": str(folder)}
        done = subprocess.run(
            [*_UNSHARE, "bash", "-c", inside, "_", sys.executable, "-m", __name__, str(output), str(folder), *words],
            env=kept | settings | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    log = folder / "log"
    said = log.read_text() if log.exists() else ""
    assert done.returncode == 0, said + done.stdout + done.stderr
    return Story(said, float(done.stdout.split()[-1]))


def _main(output: Path, folder: Path, words: list[str]) -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_")}
    words = [*words, "--cluster.address", str(cluster.address)]
    command = Command(words, output, folder / "log", **environment)
    command.wait_for_step(50)
    seconds = seconds_to_next_step(output, lambda: cluster.remove_node(second, allow_graceful=False))
    cluster.add_node(**node)
    code = command.wait()
    command.end()
    cluster.shutdown()
    print(seconds)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
