"""A cluster of two nodes in namespaces of its own, a training run on it, a node that dies and one that comes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.pretraining import PATIENCE_SECONDS, ROOT, Command

# Long enough that the run is still at work when the second node has come.
LONGER = ["--train.num_steps", "800", "--train.checkpoint_every_steps", "20", "--train.num_workers", "[1, 2]"]
_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def perform(words: list[str], output: Path, folder: Path) -> str:
    """Train with the words while the node is lost and found; return what the command said."""
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
    return said


def _main(output: Path, folder: Path, words: list[str]) -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_")}
    words = [*words, "--cluster.address", str(cluster.address)]
    command = Command(words, output, folder / "log", **environment)
    seconds = {}
    command.wait_for_step(50)
    seconds["crash"] = _until_next_step(output, lambda: cluster.remove_node(second, allow_graceful=False))
    started = time.monotonic()
    cluster.add_node(**node)
    command.wait_until(lambda: "going on with 2 worker(s)" in command.said)
    seconds["growth noticed"] = time.monotonic() - started
    code = command.wait()
    with (folder / "log").open("a") as log:
        log.write(f"seconds: {seconds}\n")
    command.end()
    cluster.shutdown()
    sys.exit(code)


def _until_next_step(output: Path, harm: Any) -> float:
    """Return the seconds from the harm to the first step that is logged after it by the new workers."""
    journal = output / "metrics.jsonl"
    harm()
    began = time.monotonic()
    num_lines = _num_lines_at_rest(journal)
    while _num_lines(journal) <= num_lines:
        assert time.monotonic() - began < PATIENCE_SECONDS
        time.sleep(0.01)
    return time.monotonic() - began


def _num_lines_at_rest(journal: Path) -> int:
    """Return the journal's lines once it has not grown for half a second."""
    before = -1
    while (now := _num_lines(journal)) != before:
        before = now
        time.sleep(0.5)
    return now


def _num_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
