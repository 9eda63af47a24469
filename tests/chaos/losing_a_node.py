"""A cluster of two nodes in namespaces of its own, a training run on it, a node that dies and one that comes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.namespaces import NODE, run_inside, text_of
from tests.chaos.pretraining import Command, seconds_to_next_step

# Long enough that the run is still at work when the second node has come.
LONGER = ["--train.num_steps", "800", "--train.checkpoint_every_steps", "20", "--train.num_workers", "[1, 2]"]


@dataclass(frozen=True, slots=True)
class Story:
    """What happened: what the command said, and how long it stood still after the crash."""

    said: str
    seconds_after_crash: float


def perform(words: list[str], output: Path, folder: Path) -> Story:
    """Train with the words while the node is lost and found."""
    log = folder / "log"
    printed = run_inside(__name__, [str(output), str(folder), *words], folder, log)
    return Story(text_of(log), float(printed.split()[-1]))


def _main(output: Path, folder: Path, words: list[str]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    second = cluster.add_node(**NODE)
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_")}
    words = [*words, "--cluster.address", str(cluster.address)]
    command = Command(words, output, folder / "log", **environment)
    command.wait_for_step(50)
    seconds = seconds_to_next_step(output, lambda: cluster.remove_node(second, allow_graceful=False))
    cluster.add_node(**NODE)
    code = command.wait()
    command.end()
    cluster.shutdown()
    print(seconds)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
