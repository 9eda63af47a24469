"""A cluster of three nodes in namespaces of its own, a pipeline on it, and the two nodes beside the head that die.

Run as a script inside the namespaces by ``perform``.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.command import ROOT
from tests.chaos.namespaces import NODE, run_inside, text_of

PATIENCE_SECONDS = 420
# Where the first of these appears, a stage is at work.
_SIGNS = ("model/checkpoints/step-*", "generated/rows/*")


def perform(words: list[str], output: Path, folder: Path) -> str:
    """Run the pipeline with the words on three nodes, two of which die; return what it said."""
    log = folder / "log"
    run_inside(__name__, [str(output), str(folder), *words], folder, log)
    return text_of(log)


def _main(output: Path, folder: Path, words: list[str]) -> int:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 2, "include_dashboard": False})
    others = [cluster.add_node(**NODE) for _ in _SIGNS]
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
