"""What a training run logged, read back, and where two runs part.

Reads what a run was trained with, of its newest checkpoint or begun.json, and its journal of metrics: plain files.
Called by `herd replay` and `herd compare`; writes nothing.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.errors import CheckpointError
from gpt_core.ledger import differences
from gpt_core.storage import Storage
from gpt_core.training.begun import newest
from gpt_core.training.training_plan import TrainingPlan

JOURNAL = "metrics.jsonl"
# What a step's result is; rates and memory differ between any two runs.
_EXACT = ("loss", "grad_norm", "learning_rate", "validation_loss")


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """A step's exact numbers as first logged."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two runs part.

    Attributes:
        settings: (name, of the first, of the second) of each thing set that decides results and differs.
        corpus: Root digests of the two corpora if they differ.
        first_step: First step logged with other numbers, None if no common step differs.
        numbers: (name, of the first, of the second) at that step.
        num_common: Steps that both logged, equal unless first_step says otherwise.
        steps: Last logged step of each.
        missing: Steps before its last one that each has not logged.
    """

    settings: tuple[tuple[str, Any, Any], ...]
    corpus: tuple[str | None, str | None] | None
    first_step: int | None
    numbers: tuple[str, float | None, float | None] | None
    num_common: int
    steps: tuple[int, int]
    missing: tuple[tuple[int, ...], tuple[int, ...]]


def logged_steps(run_folder: str) -> dict[int, LoggedStep]:
    """Return every logged step of a run by its number; of a step logged twice the first counts.

    In a store lies the journal as of the newest checkpoint.

    Raises:
        CheckpointError: The folder has no journal.
    """
    storage = Storage.of(run_folder)
    path = storage.join(JOURNAL)
    if not storage.is_file(path):
        raise CheckpointError(run_folder, f"no {JOURNAL}", "the folder of a training run", "name another")
    steps: dict[int, LoggedStep] = {}
    with storage.on_disk(path) as journal:
        for record in _records(journal):
            step, metrics = record["step"], record["metrics"]
            values = {name: float(metrics[name]) for name in _EXACT if name in metrics}
            steps.setdefault(step, LoggedStep(step, values))
    return steps


def compare(first: str, second: str) -> Parting:
    """Return where two runs part.

    Raises:
        CheckpointError: One of the folders is none of a training run.
    """
    begun = (newest(first), newest(second))
    digests = (begun[0].corpus_digest, begun[1].corpus_digest)
    logged = (logged_steps(first), logged_steps(second))
    common = sorted(logged[0].keys() & logged[1].keys())
    differing = next((step for step in common if _difference(logged[0][step], logged[1][step])), None)
    return Parting(
        settings=tuple(differences(_decisive(begun[0].plan), _decisive(begun[1].plan))),
        corpus=digests if digests[0] != digests[1] else None,
        first_step=differing,
        numbers=_difference(logged[0][differing], logged[1][differing]) if differing is not None else None,
        num_common=len(common),
        steps=(max(logged[0], default=0), max(logged[1], default=0)),
        missing=(_gaps(logged[0]), _gaps(logged[1])),
    )


def _decisive(plan: TrainingPlan) -> dict[str, Any]:
    """Return all that decides the numbers of a step."""
    return {**plan.identity(), **plan.rounding(), "train.evaluate_sequences": plan.evaluate_sequences}


def _gaps(logged: dict[int, LoggedStep]) -> tuple[int, ...]:
    return tuple(step for step in range(1, max(logged, default=0)) if step not in logged)


def _difference(first: LoggedStep, second: LoggedStep) -> tuple[str, float | None, float | None] | None:
    """Return (name, values) of the first number both logged that differs; NaN equals NaN."""
    for name in [name for name in first.values if name in second.values]:
        before, after = first.values[name], second.values[name]
        if before != after and not (math.isnan(before) and math.isnan(after)):
            return name, before, after
    return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's whole lines of metrics; a torn one, left by a kill, is passed over."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("do") == "metrics":
                yield record
