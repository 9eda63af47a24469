"""How long training stands still after a kill: from SIGKILL to the next new step, for a worker and for a node.

Starts the real command on a small model and kills one training worker of it, again and again; then, as root,
a cluster of two nodes in namespaces of its own and crashes one of them. Prints p50 and p95. Minutes a trial.

    python -m benchmarks.recovery [--trials 3]
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np

from tests.chaos import losing_a_node
from tests.chaos.pretraining import Command, newest_logged_step, seconds_to_next_step, words_for
from tests.e2e.private_head import why_not
from tests.tiny_corpus import write_tiny_corpus

# Enough steps that a run is never done before its last kill.
ENDLESS = ["--train.num_steps", "1000000", "--train.checkpoint_every_steps", "20"]
STEPS_BETWEEN_KILLS = 50


def worker_seconds(folder: Path, corpus: Path, trials: int) -> list[float]:
    """Return the seconds from each kill of a worker to the next step of its successor."""
    output = folder / "run"
    words = words_for(folder, corpus, output, *ENDLESS, "--train.num_workers", "2", "--cluster.num_cpus", "4")
    command = Command(words, output, folder / "log")
    rng, seconds = random.Random(0), []
    try:
        for _ in range(trials):
            command.wait_for_step(newest_logged_step(output) + STEPS_BETWEEN_KILLS)
            seconds.append(seconds_to_next_step(output, lambda: command.kill_worker(rng)))
    finally:
        command.end()
    return seconds


def node_seconds(folder: Path, corpus: Path, trials: int) -> list[float]:
    """Return the seconds from each crash of a node to the next step on the nodes left."""
    seconds = []
    for number in range(trials):
        trial = folder / f"node-{number}"
        trial.mkdir()
        words = words_for(trial, corpus, trial / "run", *losing_a_node.LONGER)
        seconds.append(losing_a_node.perform(words, trial / "run", trial).seconds_after_crash)
    return seconds


def report(what: str, seconds: list[float]) -> None:
    """Print the quantiles of one kind of kill."""
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    each = ", ".join(f"{value:.1f}" for value in seconds)
    print(f"{what}: from kill to next step p50 {p50:.1f} s, p95 {p95:.1f} s, {len(seconds)} trials ({each})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=3)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory(prefix="herd-recovery-") as name:
        folder = Path(name)
        corpus = write_tiny_corpus(folder / "corpus")
        report("worker", worker_seconds(folder, corpus, trials))
        if reason := why_not():
            print(f"node: not measured: {reason}")
        else:
            report("node", node_seconds(folder, corpus, trials))


if __name__ == "__main__":
    main()
