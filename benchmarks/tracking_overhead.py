"""What following a run in MLflow costs its training: the same loop with tracking off, and with stores in four moods.

    python -m benchmarks.tracking_overhead [--ranks 2] [--steps 300] [--rounds 3]

Each round trains the tiny model from nothing once a contestant, in an order that turns from round to round: without any
record; with the SQLite file that is the default; with an MLflow server; with one that answers after 2 seconds; and with
one that is dead. As in `herd pretrain`, rank 0 appends to a journal, and this process, which has the run open, follows
it. A step's time is taken as in `benchmarks.ray_overhead`, the first tenth of the steps left out. Prints tokens a
second, and each round's ratio to the one without records (99.5% asked). The server runs on the same cores.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.quality import write_corpus
from benchmarks.ray_overhead import MODELS, Timer, measured, write_text
from cluster.recording.journal import Journal
from cluster.tracking import TrackingOptions, open_run
from gpt_core.training.local_ranks import run_on_ranks
from gpt_core.training.loop import train
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan
from tests.chaos.mlflow_server import Proxy, free_port, mlflow_server

LATENCY_SECONDS = 2.0
OFF = "off"


def main() -> None:
    """Measure all contestants in rounds, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="herd-tracking-") as name, contextlib.ExitStack() as exits:
        folder, port = Path(name), free_port()
        exits.enter_context(mlflow_server(folder, port))
        slow = Proxy(port)
        exits.callback(slow.shutdown)
        slow.delay_seconds = LATENCY_SECONDS
        stores = {
            OFF: None,
            "sqlite": f"sqlite:///{folder}/own/mlflow.db",
            "server": f"http://127.0.0.1:{port}",
            "slow server": slow.uri,
            "dead server": f"http://127.0.0.1:{free_port()}",
        }
        _print(arguments, compare(_plan(folder, arguments), arguments.ranks, arguments.rounds, stores))


def _plan(folder: Path, arguments: argparse.Namespace) -> TrainingPlan:
    shape, sequences = MODELS["tiny"]
    return TrainingPlan(
        corpus=write_corpus(write_text(folder), folder / "corpus"),
        output=str(folder),
        shape=shape,
        num_steps=arguments.steps,
        window_tokens=shape.num_positions,
        batch_sequences=sequences,
        micro_batch_sequences=sequences // arguments.ranks,
        recipe=Recipe(learning_rate=1e-3),
        precision="fp32",
    )


def compare(plan: TrainingPlan, num_ranks: int, rounds: int, stores: dict[str, str | None]) -> dict[str, list[float]]:
    """Return the tokens a second of each round, by store; None is no record at all."""
    found: dict[str, list[float]] = {store: [] for store in stores}
    for number in range(rounds):
        names = list(stores)
        turned = names[number % len(names) :] + names[: number % len(names)]
        for store in turned:
            output = Path(plan.output) / f"{store.replace(' ', '-')}-{number}"
            output.mkdir()
            found[store].append(_rate(replace(plan, output=str(output)), num_ranks, stores[store]))
    return found


def _rate(plan: TrainingPlan, num_ranks: int, uri: str | None) -> float:
    if uri is None:
        return run_on_ranks(num_ranks, _train_and_time, plan, None)
    output = Path(plan.output)
    options = TrackingOptions(uri, closing_seconds=0.0)  # what is left at the end is not measured
    with open_run(options, name=output.name, kind="pretrain", output=output) as run:
        run.follow(output / "metrics.jsonl")
        return run_on_ranks(num_ranks, _train_and_time, plan, str(output / "metrics.jsonl"))


class _Journalling(Timer):
    """Keeps when each step ended, and hands its metrics to the journal."""

    def __init__(self, append: Callable[..., None]) -> None:
        super().__init__()
        self._append = append

    def on_metrics(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """Append the metrics, then keep the step."""
        self._append(metrics, step=step, tokens=tokens)
        super().on_metrics(step, tokens, metrics)


def _train_and_time(ranks: Ranks, plan: TrainingPlan, journal: str | None) -> float:
    timer = Timer()
    if journal is not None and ranks.rank == 0:
        timer = _Journalling(Journal(Path(journal)).append_metrics)
    train(plan, ranks, timer)
    return measured(plan, timer.steps).tokens_per_second


def _print(arguments: argparse.Namespace, found: dict[str, list[float]]) -> None:
    print(f"{arguments.ranks} ranks, {arguments.steps} steps, load {os.getloadavg()[0]:.1f}")
    for store, rates in found.items():
        ratios = [rate / off for rate, off in zip(rates, found[OFF], strict=True)]
        each = " ".join(f"{ratio:.1%}" for ratio in ratios)
        told = f"{statistics.median(rates):8,.0f} tokens/s, {statistics.median(ratios):.1%} of off; rounds {each}"
        print(f"  {store:11} {told}", flush=True)


if __name__ == "__main__":
    main()
