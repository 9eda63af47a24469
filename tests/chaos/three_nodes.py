"""A cluster of three nodes in namespaces of its own, a pipeline on it, and the two nodes beside the head that die.

Run as a script inside the namespaces by ``perform``.
"""

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.command import ROOT
from tests.chaos.namespaces import NODE, run_inside, text_of

PATIENCE_SECONDS = 420


@dataclass(frozen=True, slots=True)
class Moment:
    """Some seconds after the first file of a pattern appears in the pipeline's output."""

    sign: str
    seconds: float = 0.0


def perform(words: list[str], output: Path, folder: Path, deaths: tuple[Moment, Moment]) -> str:
    """Run the pipeline with the words on three nodes, two of which die at these moments; return what it said."""
    log = folder / "log"
    moments = [word for death in deaths for word in (death.sign, str(death.seconds))]
    run_inside(__name__, [str(output), str(folder), *moments, *words], folder, log)
    return text_of(log)


def _main(output: Path, folder: Path, deaths: list[Moment], words: list[str]) -> int:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 2, "include_dashboard": False})
    others = [cluster.add_node(**NODE) for _ in deaths]
    with (folder / "log").open("ab") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.pipeline", *words, "--cluster.address", str(cluster.address)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        for death in deaths:
            _wait_for(output, death, job)
            cluster.remove_node(others.pop(0), allow_graceful=False)
            place = "over" if job.poll() is not None else "at work"
            log.write(f"a node died {death.seconds:.1f} s after {death.sign}; the job was {place}\n".encode())
            log.flush()
        code = job.wait(PATIENCE_SECONDS)
    cluster.shutdown()
    return code


def _wait_for(output: Path, moment: Moment, job: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while job.poll() is None and not any(output.glob(moment.sign)):
        assert time.monotonic() < give_up, f"no {moment.sign}"
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(moment.seconds)


if __name__ == "__main__":
    output, folder, *rest = sys.argv[1:]
    moments = [Moment(rest[0], float(rest[1])), Moment(rest[2], float(rest[3]))]
    sys.exit(_main(Path(output), Path(folder), moments, rest[4:]))
