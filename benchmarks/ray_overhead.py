"""What Ray costs a training run: the same loop under Ray Train and in a bare process group, on the same cores.

    python -m benchmarks.ray_overhead [--ranks 2] [--steps 200] [--rounds 3] [--model tiny quickstart]

Each round trains the model twice from nothing, in turn: by `herd pretrain`'s own path, with its journal of metrics and
its look for a wish to stop, and by processes that gloo joins, with an observer that only keeps the times. Both take
their steps' time from the end of a step to the end of a later one on rank 0, the first tenth of the steps left out, so
that all between steps counts, and starting does not. Prints tokens a second, their ratio (99% asked), and the share of
the steps spent waiting for data (0.5% at most asked), which the loop measures itself in every run.
"""

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality import write_corpus
from cluster import training
from cluster.cpu_allocator import GLIBC_TUNABLES
from cluster.fitting import Fitting
from cluster.recording.journal import read_all
from cluster.session import connect
from gpt_core.model.presets import ModelShape
from gpt_core.settings import ClusterSettings
from gpt_core.sole_writer import sole_writer
from gpt_core.training.local_ranks import run_on_ranks
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan

TEXT_BYTES = 2_000_000
# The recipe for tinyshakespeare, and the model of the quickstart with bytes for tokens.
MODELS = {"tiny": (ModelShape(4, 4, 128, 64, 257), 16), "quickstart": (ModelShape(4, 4, 128, 128, 257), 8)}


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, once running."""

    tokens_per_second: float
    data_wait_share: float


def main() -> None:
    """Measure each model in rounds, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", nargs="+", default=["tiny"], choices=list(MODELS))
    arguments = parser.parse_args()
    # What Ray's workers are started with, for the bare processes, too.
    os.environ |= {"GLIBC_TUNABLES": GLIBC_TUNABLES, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="herd-overhead-") as folder:
        corpus = write_corpus(write_text(Path(folder)), Path(folder) / "corpus")
        for name in arguments.model:
            shape, sequences = MODELS[name]
            plan = TrainingPlan(
                corpus=corpus,
                output=folder,
                shape=shape,
                num_steps=arguments.steps,
                window_tokens=shape.num_positions,
                batch_sequences=sequences,
                micro_batch_sequences=sequences // arguments.ranks,
                recipe=Recipe(learning_rate=1e-3),
                precision="fp32",
            )
            _print(name, arguments, compare(plan, arguments.ranks, arguments.rounds))


def compare(plan: TrainingPlan, num_ranks: int, rounds: int) -> dict[str, list[Measured]]:
    """Return what was measured in each round, in a bare process group and under Ray."""
    found: dict[str, list[Measured]] = {"bare": [], "ray": []}
    runs = {"bare": _run_bare, "ray": _run_on_ray}
    for number in range(rounds):
        for kind in ("bare", "ray") if number % 2 else ("ray", "bare"):
            output = Path(plan.output) / f"{kind}-{number}-{time.monotonic_ns()}"
            output.mkdir()
            found[kind].append(runs[kind](replace(plan, output=str(output)), num_ranks))
    return found


class Timer(Silence):
    """Keeps when each step ended and what it waited for data."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, dict[str, float]]] = []

    def on_metrics(self, step: int, tokens: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        """Keep the step."""
        self.steps.append((time.time(), metrics))


def _train_and_time(ranks: Ranks, plan: TrainingPlan) -> Measured:
    timer = Timer()
    train(plan, ranks, timer)
    return measured(plan, timer.steps)


def _run_bare(plan: TrainingPlan, num_ranks: int) -> Measured:
    return run_on_ranks(num_ranks, _train_and_time, plan)


def _run_on_ray(plan: TrainingPlan, num_ranks: int) -> Measured:
    with connect(ClusterSettings()), sole_writer(plan.folder, training._LOCK, 0.0):
        Fitting(
            title="pretrain",
            plan=plan,
            work=training._work,
            counts=[num_ranks],
            max_failures=0,
            show=lambda: False,
        ).run()
    records = [record for record in read_all(Path(plan.output) / training.METRICS) if record["do"] == "metrics"]
    return measured(plan, [(record["time"] / 1e3, record["metrics"]) for record in records])


def measured(plan: TrainingPlan, steps: list[tuple[float, dict[str, Any]]]) -> Measured:
    """Return the rate over all steps but the first tenth, and what share of them was waited for data."""
    later = steps[len(steps) // 10 :]
    seconds = later[-1][0] - later[0][0]
    tokens = (len(later) - 1) * plan.batch_sequences * plan.window_tokens
    waits = [metrics["data_wait_share"] for _, metrics in later]
    return Measured(tokens / seconds, statistics.mean(waits))


def write_text(folder: Path) -> Path:
    """Write some megabytes of the standard library's sources into one file."""
    path, written = folder / "text.txt", 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            if written < TEXT_BYTES:
                written += file.write(source.read_text("utf-8", errors="replace"))
    return path


def _print(name: str, arguments: argparse.Namespace, found: dict[str, list[Measured]]) -> None:
    rates = {kind: statistics.median(run.tokens_per_second for run in runs) for kind, runs in found.items()}
    waits = {kind: statistics.median(run.data_wait_share for run in runs) for kind, runs in found.items()}
    ratios = [r.tokens_per_second / b.tokens_per_second for r, b in zip(found["ray"], found["bare"], strict=True)]
    print(f"{name}, {arguments.ranks} ranks, {arguments.steps} steps, load {os.getloadavg()[0]:.1f}")
    for kind in found:
        print(f"  {kind:4} {rates[kind]:8,.0f} tokens/s, {waits[kind]:.2%} of a step waiting for data")
    each = " ".join(f"{ratio:.1%}" for ratio in ratios)
    print(f"  under Ray {rates['ray'] / rates['bare']:.1%} of the bare rate; rounds {each}", flush=True)


if __name__ == "__main__":
    main()
