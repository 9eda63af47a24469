"""A cluster of three nodes in namespaces of its own, a pipeline on it, and the two nodes beside the head that die.

Run as a script inside the namespaces by ``perform``.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 420
_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
# Where the first of these appears, a stage is at work.
_SIGNS = ("model/checkpoints/step-*", "generated/rows/*")


def perform(words: list[str], output: Path, folder: Path) -> str:
    """Run the pipeline with the words on three nodes, two of which die; return what it said."""
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


def _main(output: Path, folder: Path, words: list[str]) -> int:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 2, "include_dashboard": False})
    others = [cluster.add_node(**node) for _ in _SIGNS]
    with (folder / "log").open("ab") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.pipeline", *words, "--cluster.address", str(cluster.address)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        for sign in _SIGNS:
            _wait_for(output, sign, job)
            cluster.remove_node(others.pop(0), allow_graceful=False)
            log.write(
                f"a node died at {sign}; the job was {'over' if job.poll() is not None else 'at work'}\n".encode()
            )
            log.flush()
        code = job.wait(PATIENCE_SECONDS)
    cluster.shutdown()
    return code


def _wait_for(output: Path, sign: str, job: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while job.poll() is None and not any(output.glob(sign)):
        assert time.monotonic() < give_up, f"no {sign}"
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
