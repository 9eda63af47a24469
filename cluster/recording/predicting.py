"""What a training run was expected to reach, beside what it did.

Rank 0 of the run's first start writes the expectation into the run's folder before the first step; a run that is
continued keeps it. At the end the driver puts both into the run's records.
"""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.progress import say
from cluster.recording.journal import read_all
from cluster.recording.record_book import Run
from gpt_core import sealed_json
from gpt_core.counted import in_largest_unit
from gpt_core.errors import CorpusError
from gpt_core.storage import Location, Storage
from gpt_core.training.checkpoint_folder import step_of
from gpt_core.training.planning import Expected, expect
from gpt_core.training.step_parts import StepParts
from gpt_core.training.training_plan import TrainingPlan

EXPECTED = "expected.json"


def write_expectation(plan: TrainingPlan, num_workers: int, flops_a_second: float) -> None:
    """Write what is to be expected of the run, once: at this peak rate of a GPU, or as measured here on a CPU."""
    path = plan.folder / EXPECTED
    if not path.exists():
        value_bytes = 2 if plan.precision == "bf16" else 4
        pace = flops_a_second if plan.device == "gpu" else _measure_parts(plan)
        sealed_json.write(path, asdict(expect(plan, num_workers, pace, value_bytes)))


class Foretold:
    """The expectation of a run that begins, to be said once; a run that is continued has had its own."""

    def __init__(self, title: str, folder: Path) -> None:
        self._title, self._path = title, folder / EXPECTED
        self._said = self._path.exists()

    def tell(self) -> None:
        """Say it if it is there and was not said yet."""
        if not self._said and (expected := _read(self._path)):
            self._said = True
            time, unit = in_largest_unit(expected.seconds)
            rate, tokens = expected.tokens_per_second, expected.num_tokens
            say(f"{self._title}: expecting {rate:,.0f} tokens/s, about {time:,.1f} {unit} for {tokens:,} tokens")


def record_comparison(title: str, run: Run, plan: TrainingPlan, metrics_journal: Path, checkpoint: Location) -> None:
    """Record the expected and the actual figures as metrics of the last checkpoint's step and as a table; say them."""
    expected = _read(plan.folder / EXPECTED)
    if expected is None:
        return
    actual = actual_figures(metrics_journal, checkpoint, expected.num_workers)
    if actual is None:
        return
    rows = [{"figure": name, "expected": getattr(expected, name), "actual": actual[name]} for name in actual]
    metrics = {f"{kind}/{row['figure']}": float(row[kind]) for row in rows for kind in ("expected", "actual")}
    run.log_metrics(metrics, step=step_of(checkpoint))
    run.log_table(rows, "expected_and_actual.json")
    run.set_tags({"herd.expected_from": expected.rate_from})
    say(
        f"{title}: {actual['tokens_per_second']:,.0f} tokens/s where {expected.tokens_per_second:,.0f} were expected "
        f"(see docs/training.md), {actual['peak_memory_bytes'] / 1e9:.2f} GB a worker where "
        f"{expected.peak_memory_bytes / 1e9:.2f} were"
    )


def actual_figures(metrics_journal: Path, checkpoint: Location, num_workers: int) -> dict[str, float] | None:
    """Return what a run reached, under the names of ``Expected``; None where its journal is gone.

    The rate is the median step's; the seconds are those of all steps, those done again after a loss left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    for record in read_all(metrics_journal) if metrics_journal.exists() else ():
        if record["do"] == "metrics" and "tokens_per_second" in record["metrics"]:
            steps.setdefault(record["step"], record["metrics"])
    if not steps:
        return None
    before = {step: steps[step - 1]["tokens"] if step - 1 in steps else 0 for step in steps}
    seconds = sum((one["tokens"] - before[step]) / one["tokens_per_second"] for step, one in steps.items())
    return {
        "tokens_per_second": statistics.median(one["tokens_per_second"] for one in steps.values()),
        "seconds": seconds,
        "worker_hours": num_workers * seconds / 3600,
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in steps.values()),
        "checkpoint_bytes": float(sum(size for _, size in Storage.of(checkpoint).list_files(str(checkpoint)))),
    }


def _measure_parts(plan: TrainingPlan) -> StepParts:
    from gpt_core.training.measure_parts import measure_parts  # here, so that the driver starts without torch

    return measure_parts(plan)


def _read(path: Path) -> Expected | None:
    """Return the expectation; None where there is none, or a torn one."""
    try:
        content = sealed_json.read(path)
    except CorpusError:
        return None
    return Expected(**content) if content else None
