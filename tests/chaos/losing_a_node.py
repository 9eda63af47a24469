"""A cluster of two nodes in namespaces of its own, a training run on it, a node that dies, one that comes and goes.

Run as a script inside the namespaces by ``perform``.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.command import write_counting
from tests.chaos.namespaces import NODE, run_inside, text_of
from tests.chaos.pretraining import Command, newest_logged_step, seconds_to_next_step

LONGER = ["--train.num_steps", "300", "--train.checkpoint_every_steps", "20", "--train.num_workers", "[1, 2]"]
# While the new node comes and goes each step takes so long that the run, however fast, is still at work then.
_SLOW = "HERD_TEST_SLOW"
_SLOWED = f"""
def count(module):
    import time
    plain = module._Reporter.on_metrics
    def slowed(self, *args):
        if os.path.exists(os.environ[{_SLOW!r}]):
            time.sleep(0.2)
        plain(self, *args)
    module._Reporter.on_metrics = slowed
"""


@dataclass(frozen=True, slots=True)
class Story:
    """What happened: what the command said, and how long it stood still after the crash."""

    said: str
    seconds_after_crash: float


def perform(words: list[str], output: Path, folder: Path) -> Story:
    """Train with the words while a node crashes, another comes, and that one is drained."""
    log = folder / "log"
    write_counting(folder, "cluster.training", _SLOWED)
    printed = run_inside(__name__, [str(output), str(folder), *words], folder, log, **{_SLOW: str(folder / "slow")})
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
    (folder / "slow").touch()
    third = cluster.add_node(**NODE)
    command.wait_until(lambda: "going on with 2 workers" in command.said)
    command.wait_for_step(newest_logged_step(output) + 20)
    _drain(third.node_id, str(cluster.address))
    command.wait_until(lambda: "a node is leaving" in command.said)
    (folder / "slow").unlink()
    code = command.wait()
    command.end()
    cluster.shutdown()
    print(seconds)  # noqa: T201
    sys.exit(code)


def _drain(node: str, address: str) -> None:
    """Tell Ray what a provider does that takes a machine away in a minute."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
    words = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "drain-node",
        "--address",
        address,
        "--node-id",
        node,
        *reason,
    ]
    subprocess.run([*words, "--deadline-remaining-seconds", "60"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
